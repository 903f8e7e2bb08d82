//! `[destination]`: where sends go beside URLs, and each tenant's part in it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lettre::Address;
use lettre::message::Mailbox;

use super::super::file::{KeyAt, Table, Wrong, wrong};
use super::super::s3::is_bucket;
use super::super::sql::{TENANT, schema as schema_of};
use super::super::{
    Destinations, EmailSettings, Gathering, Login, MailTo, S3Credentials, S3Settings, Secret, SqlSettings,
};
use super::{Surroundings, files, values};
use crate::limits;
use crate::policy::{CheckedUrl, Destination, Host, Scheme};
use crate::send::TenantId;

const HOUR: Duration = Duration::from_secs(3600);

impl<'a, 'r> Surroundings<'a, 'r> {
    pub(super) fn destinations(&self, table: Table<'a, 'r>) -> Destinations {
        let email = table.table("email");
        let email = email.is_written().then(|| self.email(email)).flatten();
        let s3 = table.table("s3");
        let sql = table.table("sql");
        let s3 = s3.is_written().then(|| self.s3(s3)).flatten().map(Arc::new);
        let sql = sql.is_written().then(|| self.sql(sql)).flatten().map(Arc::new);
        table.finish();
        Destinations { email, s3, sql }
    }

    fn s3(&self, table: Table<'a, 'r>) -> Option<S3Settings> {
        const ENDPOINT: &str = "name the store, like \"https://s3.us-east-1.amazonaws.com\"";
        let endpoint = table.required("endpoint", ENDPOINT, endpoint);
        let path_style = table.flag("path_style", false);
        let region = table.text("region", "us-east-1".to_owned(), |text| {
            let good = (1..=64).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
            good.then(|| text.to_owned()).ok_or_else(|| wrong(format!("{text:?} is no region"), "like \"us-east-1\""))
        });
        let credentials =
            table.required("credentials_file", "name the file with the credentials, in AWS's form", |text| {
                let path = self.path(text);
                S3Credentials::read(&path).map(|_| path)
            });
        let buckets = table.texts("buckets", |text| {
            let plain = text.replace('*', "a");
            let good = !text.is_empty() && (is_bucket(&plain) || text.contains('*') && plain.len() < 3);
            good.then(|| text.to_owned()).ok_or_else(|| {
                wrong(format!("{text:?} is no bucket's name, nor a pattern of them"), "like \"logs\" or \"logs-*\"")
            })
        });
        let gathering = self.gathering(&table);
        if let Some(Destination { host: Host::Address(_), .. }) = &endpoint
            && !path_style.value
        {
            let detail = "is false, and endpoint is an address, which no bucket's name can stand before";
            table.note("path_style", wrong(detail, "write path_style = true"));
        }
        table.finish();
        Some(S3Settings {
            endpoint: endpoint?,
            path_style: path_style.value,
            region: region.value,
            credentials_file: credentials?,
            buckets: values(buckets),
            gathering,
        })
    }

    fn sql(&self, table: Table<'a, 'r>) -> Option<SqlSettings> {
        const URL: &str = "name the database, like \"postgres://egressd@warehouse.example.net/events\"";
        let url = table.required("url", URL, warehouse);
        let password = table.optional("password_file", |text| password(&self.path(text)));
        let schema = table.text("schema", TENANT.to_owned(), |text| {
            let rest = text.replacen(TENANT, "", 1);
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
            let good = text.contains(TENANT) && rest.bytes().all(plain) && rest.len() < limits::SQL_NAME_BYTES_MAX;
            good.then(|| text.to_owned()).ok_or_else(|| {
                wrong(
                    format!("{text:?} does not keep tenants apart, or is no schema's name"),
                    "like \"{tenant}\" or \"t_{tenant}\"",
                )
            })
        });
        let gathering = self.gathering(&table);
        table.finish();
        let Warehouse { server, database, user } = url?;
        let (password, schema) = (password.value, schema.value);
        Some(SqlSettings { server, database, user, password, schema, schemas: HashMap::new(), gathering })
    }

    /// Gives each tenant that the configuration names its schema: `ids` with the place of each.
    pub(super) fn schemas(&self, sql: &mut SqlSettings, ids: &[(TenantId, KeyAt)]) {
        let mut taken: HashMap<String, &TenantId> = HashMap::new();
        for (id, place) in ids {
            let fix = "give the tenant another id, or [destination.sql] another schema";
            match schema_of(&sql.schema, id) {
                Err(why) => {
                    self.reader.note(place, wrong(format!("{id:?} has no schema: {why}", id = id.as_str()), fix))
                }
                Ok(name) => match taken.get(&name) {
                    Some(other) => {
                        let detail = format!("{:?} has the schema {name:?}, as {:?} has", id.as_str(), other.as_str());
                        self.reader.note(place, wrong(detail, fix));
                    }
                    None => {
                        taken.insert(name.clone(), id);
                        sql.schemas.insert(id.clone(), name);
                    }
                },
            }
        }
    }

    fn gathering(&self, table: &Table<'a, 'r>) -> Gathering {
        let ms = std::time::Duration::from_millis;
        let every = table.duration("every", limits::BATCH_EVERY, ms(10)..=HOUR);
        let bytes = table.size("batch_bytes", limits::BATCH_BYTES, limits::KIB..=limits::BATCH_BYTES_MAX);
        let sends = table.count("batch_sends", limits::BATCH_SENDS, 1..=limits::BATCH_SENDS_MAX);
        let deadline = table.duration("deadline", limits::BATCH_DEADLINE, ms(10)..=limits::DEADLINE_MAX);
        let give_up = table.duration("give_up", limits::BATCH_GIVE_UP, ms(10)..=limits::BATCH_GIVE_UP_MAX);
        Gathering {
            every: every.value,
            bytes: bytes.value,
            sends: sends.value as usize,
            deadline: deadline.value,
            give_up: give_up.value,
        }
    }

    fn email(&self, table: Table<'a, 'r>) -> Option<EmailSettings> {
        let ms = std::time::Duration::from_millis;
        let relay = table.required("relay", "name the mail server, like \"smtps://mail.example.net:465\"", relay);
        let from = table.required("from", "name the sender, like \"Workflows <notifications@example.net>\"", sender);
        let user = table.optional("user", |text| {
            let plain = (1..=limits::NAME_CHARS_MAX).contains(&text.len()) && !text.contains(char::is_control);
            plain.then(|| text.to_owned()).ok_or_else(|| {
                wrong("is empty, too long or holds control characters", "write the name that the relay knows")
            })
        });
        let password = table.optional("password_file", |text| password(&self.path(text)));
        if user.written != password.written {
            let (there, missing) = if user.written { ("user", "password_file") } else { ("password_file", "user") };
            let detail = format!("is missing, and {there} is given");
            table.note(missing, wrong(detail, "give both, or neither where the relay asks for no login"));
        }
        let deadline = table.duration("deadline", limits::MAIL_DEADLINE, ms(10)..=limits::DEADLINE_MAX);
        table.finish();
        let login = user.value.zip(password.value).map(|(user, password)| Login { user, password });
        Some(EmailSettings { relay: relay?, login, from: from?, deadline: deadline.value })
    }

    /// Of one `[[tenant]]`.
    pub(super) fn mail_to(&self, table: &Table<'a, 'r>) -> Option<MailTo> {
        let owner = table.optional("email", address);
        let collaborators = table.texts("collaborators", address);
        if collaborators.as_ref().is_some_and(|list| list.len() >= limits::MAIL_RECIPIENTS_MAX) {
            let fix = format!("at most {}", limits::MAIL_RECIPIENTS_MAX - 1);
            table.note("collaborators", wrong("names too many addresses for one message", fix));
        }
        if !owner.written && collaborators.as_ref().is_some_and(|list| !list.is_empty()) {
            let fix = "give the tenant its own address too: mail goes there first";
            table.note("email", wrong("is missing, and collaborators are named", fix));
        }
        Some(MailTo { owner: owner.value?, collaborators: values(collaborators) })
    }
}

/// A database of [`SqlSettings`].
struct Warehouse {
    server: Destination,
    database: String,
    user: String,
}

/// `postgres://USER@HOST:PORT/DATABASE?sslmode=MODE`.
fn warehouse(text: &str) -> Result<Warehouse, Wrong> {
    const FORM: &str = "\"postgres://egressd@warehouse.example.net/events?sslmode=verify-full\"";
    let bad = |detail: &str| wrong(detail, format!("write {FORM}"));
    let rest = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"));
    let Some(rest) = rest else { return Err(bad("does not begin with postgres://")) };
    let Some((user, rest)) = rest.split_once('@') else { return Err(bad("names no user")) };
    if user.contains(':') {
        return Err(wrong("has a password in it", "give it as password_file"));
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let Some((host, database)) = rest.split_once('/') else { return Err(bad("names no database")) };
    let plain = |name: &str| {
        (1..=limits::SQL_NAME_BYTES_MAX).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
    };
    if !plain(user) || !plain(database) {
        return Err(bad("has a user or a database of other than letters, digits, _, - and ."));
    }
    let scheme = match query {
        // A library's word for less than this does more here: nothing is trusted without its name.
        "" | "sslmode=verify-full" | "sslmode=verify-ca" | "sslmode=require" => Scheme::PostgresTls,
        "sslmode=disable" => Scheme::Postgres,
        _ => return Err(bad("has more behind its database than sslmode, or one that may end without TLS")),
    };
    let url = CheckedUrl::parse(&format!("http://{host}/"));
    let url = url.map_err(|denial| bad(&denial.message.replace("the URL is refused: ", "")))?;
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty() && !port.ends_with(']'));
    let port = if has_port { url.destination().port } else { scheme.default_port() };
    let server = Destination { scheme, host: url.destination().host.clone(), port };
    Ok(Warehouse { server, database: database.to_owned(), user: user.to_owned() })
}

/// `https://HOST:PORT`, or `http://`.
fn endpoint(text: &str) -> Result<Destination, Wrong> {
    const FORM: &str = "\"https://s3.us-east-1.amazonaws.com\", without a path";
    let bad = |detail: String| wrong(detail, format!("write {FORM}"));
    let url = CheckedUrl::parse(text).map_err(|denial| bad(denial.message.replace("the URL is refused: ", "")))?;
    if url.origin_form() != "/" || url.as_str().contains('#') {
        return Err(bad(format!("{text:?} has more than a host and a port")));
    }
    Ok(url.destination().clone())
}

/// `smtps://HOST:PORT`, or `smtp://`, which turns to TLS before anything else.
fn relay(text: &str) -> Result<Destination, Wrong> {
    const FORM: &str = "\"smtps://mail.example.net:465\", or \"smtp://mail.example.net:587\" for STARTTLS";
    let bad = |detail: String| wrong(detail, format!("write {FORM}"));
    let (scheme, rest) = match text.split_once("://") {
        Some(("smtps", rest)) => (Scheme::Smtps, rest),
        Some(("smtp", rest)) => (Scheme::Smtp, rest),
        _ => return Err(bad(format!("{text:?} begins with neither smtps:// nor smtp://"))),
    };
    if rest.contains('@') {
        return Err(wrong("has a user name or a password in it", "give them as user and password_file"));
    }
    if rest.contains(['/', '?', '#']) {
        return Err(bad(format!("{text:?} has more than a host and a port")));
    }
    // The same reading of a host as anywhere; whether it may be reached is judged at each message, port aside.
    let url = CheckedUrl::parse(&format!("http://{rest}/"));
    let url = url.map_err(|denial| bad(denial.message.replace("the URL is refused: ", "")))?;
    let has_port = rest.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty() && !port.ends_with(']'));
    let port = if has_port { url.destination().port } else { scheme.default_port() };
    if port == 0 {
        return Err(bad("port 0 is nobody's".to_owned()));
    }
    Ok(Destination { scheme, host: url.destination().host.clone(), port })
}

/// An address as SMTP carries it without extensions, in angle brackets.
fn address(text: &str) -> Result<Address, Wrong> {
    let bad =
        || wrong(format!("{text:?} is not a mail address"), "write the address alone, like \"owner@acme.example\"");
    let address: Address = text.parse().map_err(|_| bad())?;
    plain(&address)?;
    Ok(address)
}

fn sender(text: &str) -> Result<Mailbox, Wrong> {
    const FORM: &str = "like \"Workflows <notifications@example.net>\"";
    let bad = || wrong(format!("{text:?} is not a sender"), FORM);
    let mailbox: Mailbox = text.parse().map_err(|_| bad())?;
    if text.contains(char::is_control) {
        return Err(bad());
    }
    plain(&mailbox.email)?;
    Ok(mailbox)
}

fn plain(address: &Address) -> Result<(), Wrong> {
    let text: &str = address.as_ref();
    let good = |byte: u8| byte.is_ascii_graphic() && !b"<>()[]\",:;\\".contains(&byte);
    if text.len() > 254 || !text.bytes().all(good) {
        let fix = "at most 254 visible ASCII characters; a domain of other letters in its xn-- form";
        return Err(wrong(format!("{text:?} cannot be carried everywhere"), fix));
    }
    Ok(())
}

/// The first line of a file.
fn password(path: &Path) -> Result<Secret, Wrong> {
    let named = || path.display().to_string();
    let bytes = files::read_bounded(path)
        .map_err(|cause| wrong(format!("{} cannot be read: {cause}", named()), "name a readable file"))?;
    let text = String::from_utf8(bytes).map_err(|_| wrong(format!("{} is not UTF-8", named()), "write it as text"))?;
    let line = text.strip_suffix('\n').map_or(&*text, |line| line.strip_suffix('\r').unwrap_or(line));
    if line.is_empty() || line.len() > 1024 || line.contains(char::is_control) {
        let fix = "one line with the password, of at most 1,024 bytes";
        return Err(wrong(format!("{} holds no password", named()), fix));
    }
    Ok(Secret::new(line.to_owned()))
}
