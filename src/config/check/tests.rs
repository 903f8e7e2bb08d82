use std::fs;

use super::*;
use crate::config::{Gathering, HostPattern, PolicyMode};
use crate::policy::{Destination, Host, Scheme};
use crate::send::Kind;

const NOW: &str = "2026-11-22T12:00:00Z";
const LIST: &str = "198.51.100.10\n198.51.100.11\n2001:db8::10\n";
const SOURCE: &str = "[[egress.source]]\npublic = \"198.51.100.10\"\n";

/// A directory with a published file, a resolv.conf and whatever else a configuration names.
struct Desk {
    dir: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("public-ips.txt"), LIST).unwrap();
        fs::write(dir.path().join("resolv.conf"), "nameserver 192.0.2.53\n").unwrap();
        Self { dir }
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn read(&self, text: &str) -> Result<Config, Vec<ConfigProblem>> {
        let (path, resolv_conf) = (self.dir.path().join("egressd.toml"), self.dir.path().join("resolv.conf"));
        from_text(text, &path, Outside { resolv_conf: &resolv_conf, now: NOW.parse().unwrap(), prove: &|_| Ok(()) })
    }

    /// The problems as a person sees them, without the directory's name.
    fn problems(&self, text: &str) -> Vec<String> {
        let dir = format!("{}/", self.dir.path().display());
        let problems = self.read(text).err().unwrap_or_default();
        problems.iter().map(|problem| problem.to_string().replace(&dir, "")).collect()
    }
}

fn good(text: &str) -> Config {
    Desk::new().read(text).unwrap_or_else(|problems| panic!("{text}\n{problems:#?}"))
}

/// Each row: what stands beside one good source, and the whole of what is said of it.
#[track_caller]
fn check(rows: &[(&str, &[&str])]) {
    let place = Desk::new();
    for (text, expected) in rows {
        let found = place.problems(&format!("{text}\n{SOURCE}"));
        assert_eq!(found, *expected, "\n{text}");
    }
}

const SHOWN: &str = include_str!("../../../config/egressd.toml");

/// The shipped file with the lines that begin with one of these markers made real.
fn uncommented(markers: &[&str]) -> String {
    let lines = SHOWN.lines().map(|line| {
        let hashes = line.len() - line.trim_start_matches('#').len();
        let (marker, rest) = line.split_at(hashes);
        let real = markers.contains(&marker) && rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '[');
        if real { rest } else { line }
    });
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_shipped_file_shows_the_defaults() {
    let place = Desk::new();
    let shown = place.read(&format!("{}\n{SOURCE}", uncommented(&["#"]))).unwrap();
    assert_eq!(shown.store.path, Path::new("/var/lib/egressd"));
    assert_eq!(shown, place.read(SOURCE).unwrap());
    assert_ne!(uncommented(&["#"]), SHOWN);
}

#[test]
fn the_shipped_file_is_valid_but_for_its_lack_of_a_source() {
    let found = Desk::new().problems(SHOWN);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("egress.source: no source"), "{found:?}");
}

#[test]
fn the_shipped_file_shows_every_key_and_no_other() {
    let place = Desk::new();
    let (cert, key) = pair();
    for (name, text) in [("api.crt", &cert), ("publish.crt", &cert), ("clients-ca.crt", &cert)] {
        place.write(name, text);
    }
    for name in ["api.key", "publish.key"] {
        place.write(name, &key);
    }
    place.write("mail-password", "p");
    place.write("warehouse-password", "p");
    place.write("s3-credentials", "aws_access_key_id = a\naws_secret_access_key = b\n");
    // Sources of the repository's own list, so that the two examples go together.
    place.write("public-ips.txt", include_str!("../../../public-ips.txt"));
    let whole = uncommented(&["#", "##"]);
    place.read(&whole).unwrap_or_else(|problems| panic!("{problems:#?}"));

    // Every table tells the keys that it knows when it meets one that it does not.
    let mut probed = String::from("zzzzzzzzzzzz = 1\n");
    for line in whole.lines() {
        probed.push_str(line);
        probed.push_str(if line.starts_with('[') { "\nzzzzzzzzzzzz = 1\n" } else { "\n" });
    }
    let document: toml::Table = probed.parse().unwrap();
    let mut tables = 0;
    for problem in place.read(&probed).unwrap_err() {
        let path = problem.key.strip_suffix("zzzzzzzzzzzz").unwrap_or_else(|| panic!("{problem}"));
        let known = problem.fix.strip_prefix("remove it; known here: ").unwrap();
        let mut table = &document;
        for step in path.split('.').filter(|step| !step.is_empty()) {
            let step = step.split('[').next().unwrap();
            table = match &table[step] {
                toml::Value::Array(array) => array[0].as_table().unwrap(),
                value => value.as_table().unwrap(),
            };
        }
        let mut written: Vec<_> = table.keys().map(String::as_str).filter(|key| !key.starts_with("zzz")).collect();
        written.sort_unstable();
        assert_eq!(written.join(", "), known, "[{path}]");
        tables += 1;
    }
    assert_eq!(tables, 1 + whole.lines().filter(|line| line.starts_with('[')).count());
}

#[test]
fn every_problem_is_told_at_once_with_its_key_and_line() {
    let text =
        "nod = \"x\"\n[delivery]\ndedline = \"5s\"\nin_flight = 0\nkeep_alive = 3\n[store]\nretention = \"soon\"\n";
    assert_eq!(
        Desk::new().problems(text),
        [
            "egressd.toml: egress.source: no source: nothing could be sent: add at least one [[egress.source]] with \
             public = \"ADDRESS\"",
            "egressd.toml:4: delivery.in_flight: 0 is out of range: 1 to 1000000",
            "egressd.toml:5: delivery.keep_alive: is an integer: write a string in quotes",
            "egressd.toml:3: delivery.dedline: is not a key of egressd: did you mean `deadline`?",
            "egressd.toml:7: store.retention: \"soon\" is not a duration: write a whole number with ms, s, m, h or d, \
             like \"5s\"",
            "egressd.toml:1: nod: is not a key of egressd: did you mean `node`?",
        ]
    );
}

#[test]
fn a_syntax_error_is_told_with_its_line() {
    for (text, line) in [("node = ", 1), ("[api\n", 1), ("a = 1\nb = 2\na = 3", 3), ("[api]\nlisten = 'x", 2)] {
        let found = Desk::new().read(text).unwrap_err();
        assert!(found[0].detail.starts_with("not valid TOML: "), "{found:?}");
        assert_eq!(found[0].line, Some(line), "{found:?}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_a_problem_too() {
    let place = Desk::new();
    let load = |name: &str| Config::load(&place.dir.path().join(name), NOW.parse().unwrap()).unwrap_err();
    assert!(load("missing.toml")[0].detail.starts_with("cannot be read"));
    place.write("latin.toml", b"node = \"\xe9\"");
    assert_eq!(load("latin.toml")[0].detail, "is not UTF-8");
    place.write("huge.toml", "#".repeat(5 << 20));
    assert!(load("huge.toml")[0].detail.contains("larger than"));
}

#[test]
fn numbers_keep_within_their_bounds_and_relations() {
    check(&[
        ("[delivery]\ndeadline = \"0s\"", &["egressd.toml:2: delivery.deadline: \"0s\" is out of range: 10ms to 1m"]),
        ("[delivery]\ndeadline = \"61s\"", &["egressd.toml:2: delivery.deadline: \"61s\" is out of range: 10ms to 1m"]),
        (
            "[delivery]\nqueued = 18446744073709551615",
            &["egressd.toml:2: delivery.queued: 18446744073709551615 is out of range: write a smaller number"],
        ),
        ("[delivery]\nqueued = -1", &["egressd.toml:2: delivery.queued: -1 is out of range: 1 to 100000000"]),
        ("[delivery]\nqueued = 1.5", &["egressd.toml:2: delivery.queued: is a float: write a whole number"]),
        (
            "[delivery]\ndeadline = \"5s\"\ndrain = \"4s\"",
            &[
                "egressd.toml:3: delivery.drain: 4s is less than deadline, which is 5s: deliveries would be cut off: at \
               least 5s",
            ],
        ),
        (
            "[delivery]\nin_flight = 100\nin_flight_per_tenant = 101\nin_flight_per_tenant_destination = 102",
            &[
                "egressd.toml:3: delivery.in_flight_per_tenant: 101 is more than in_flight, which is 100: at most 100, \
                 or a greater in_flight",
                "egressd.toml:4: delivery.in_flight_per_tenant_destination: 102 is more than in_flight_per_tenant, \
                 which is 101: at most 101, or a greater in_flight_per_tenant",
            ],
        ),
        // Nothing is concluded from a value that could not be read.
        (
            "[delivery]\nin_flight = \"many\"\nin_flight_per_tenant = 20000",
            &["egressd.toml:2: delivery.in_flight: is a string: write a whole number"],
        ),
        (
            "[delivery]\nqueued = 10\nqueued_per_tenant = 11",
            &["egressd.toml:3: delivery.queued_per_tenant: 11 is more than queued, which is 10: at most 10, or a \
               greater queued"],
        ),
        (
            "[limits]\nresponse_body_stored = \"2MiB\"",
            &["egressd.toml:2: limits.response_body_stored: 2MiB is more than response_body_read, which is 1MiB: at \
               most 1MiB, or a greater response_body_read"],
        ),
        (
            "[limits]\nrequest_body = \"1MiB\"\napi_request = \"1MiB\"",
            &["egressd.toml:2: limits.request_body: a body of 1MiB does not fit, as base64, into an api_request of \
               1MiB: at most 768KiB, or a greater api_request"],
        ),
        (
            "[delivery]\nqueued_per_tenant = 10\n[limits]\nsends_per_request = 11",
            &["egressd.toml:4: limits.sends_per_request: 11 is more than a tenant may have queued (10): at most \
               delivery.queued_per_tenant"],
        ),
        (
            "[store]\nretention = \"1d\"\nbody_retention = \"2d\"\nmax_bytes = \"1GiB\"\nbody_max_bytes = \"2GiB\"",
            &[
                "egressd.toml:3: store.body_retention: 2d is more than retention, which is 1d: at most 1d, or a \
                 greater retention",
                "egressd.toml:5: store.body_max_bytes: 2GiB is more than max_bytes, which is 1GiB: at most 1GiB, or a \
                 greater max_bytes",
            ],
        ),
        (
            "[limits]\nrequest_body = \"64KB\"",
            &["egressd.toml:2: limits.request_body: \"64KB\" is not a size: write a whole number with B, KiB, MiB, \
               GiB or TiB, like \"64KiB\""],
        ),
        // A key of a repeated call is promised for a day.
        ("[store]\nretention = \"23h\"", &["egressd.toml:2: store.retention: \"23h\" is out of range: 1d to 3650d"]),
        ("[store]\npath = \"\"", &["egressd.toml:2: store.path: is empty: name a path, like \"/var/lib/egressd\""]),
    ]);
}

#[test]
fn a_default_gives_way_to_what_is_written() {
    let config = good(&format!(
        "[delivery]\ndeadline = \"20s\"\nin_flight = 100\nqueued = 50\n[limits]\nresponse_body_read = \"1KiB\"\n\
         [store]\npath = \"data\"\nretention = \"1d\"\nmax_bytes = \"1GiB\"\n{SOURCE}"
    ));
    assert_eq!(config.delivery.drain, Duration::from_secs(20));
    assert_eq!(config.delivery.in_flight_per_tenant, 100);
    assert_eq!(config.delivery.in_flight_per_tenant_destination, 100);
    assert_eq!((config.delivery.queued_per_tenant, config.limits.sends_per_request), (50, 50));
    assert_eq!(config.limits.response_body_stored, 1024);
    assert_eq!(config.store.body_retention, DAY);
    assert_eq!(config.store.body_max_bytes, 1 << 30);
    assert!(config.store.path.is_absolute() && config.store.path.ends_with("data"));
    assert_eq!(config.store.key_file, config.store.path.join("key"));
}

#[test]
fn listeners_are_addresses_and_differ() {
    check(&[
        (
            "[api]\nlisten = \"localhost:80\"",
            &["egressd.toml:2: api.listen: \"localhost:80\" is not an address and port: write an IP address and a \
               port, like \"127.0.0.1:8700\" or \"[::1]:8700\""],
        ),
        (
            "[metrics]\nlisten = \"127.0.0.1:8700\"",
            &[
                "egressd.toml:2: metrics.listen: 127.0.0.1:8700 collides with api.listen, which is 127.0.0.1:8700: give \
               it another port",
            ],
        ),
        (
            "[publish]\nlisten = \"0.0.0.0:8701\"",
            &["egressd.toml:2: publish.listen: 0.0.0.0:8701 collides with metrics.listen, which is 127.0.0.1:8701: \
               give it another port"],
        ),
        (
            "[publish]",
            &["egressd.toml:1: publish.listen: is missing: name the address to serve the list on, like \
               \"0.0.0.0:8702\""],
        ),
        ("api = 1", &["egressd.toml:1: api: is an integer: write a table"]),
        (
            "[api]\nembed = [\"https://flows.example.net\", \"https://a.example/x\", \"http://a.example\", \"*\"]",
            &[
                "egressd.toml:2: api.embed[1]: \"https://a.example/x\" is not the origin of a page: like \
                 \"https://flows.example.net\": no path, and http for this host alone",
                "egressd.toml:2: api.embed[2]: \"http://a.example\" is not the origin of a page: like \
                 \"https://flows.example.net\": no path, and http for this host alone",
                "egressd.toml:2: api.embed[3]: \"*\" is not the origin of a page: like \"https://flows.example.net\": no \
                 path, and http for this host alone",
            ],
        ),
        (
            "[publish]\nlisten = \"0.0.0.0:8702\"\nproxies = [\"10.0.0.5\", \"0.0.0.0/0\", \"lb\"]\nurl = \"egress.example.net\"\n\
             operator = \" \"\nabuse = \"a b\"\ntls = { key = \"x\", client_ca = \"y\" }",
            &[
                "egressd.toml:7: publish.tls.cert: is missing: name the PEM file with the certificate chain",
                "egressd.toml:7: publish.tls.key: x cannot be read: No such file or directory (os error 2): name a \
                 readable PEM file",
                "egressd.toml:7: publish.tls.client_ca: is not a key of egressd: remove it; known here: cert, key",
                "egressd.toml:3: publish.proxies[1]: 0.0.0.0/0 is everybody: name the proxies: whoever is one may say \
                 for whom it asks",
                "egressd.toml:3: publish.proxies[2]: \"lb\" is not an address or a network: like \"10.0.0.5\" or \
                 \"10.0.0.0/28\"",
                "egressd.toml:4: publish.url: is not such a URL: an https or http \
                 URL without query and fragment, like \"https://egress.example.net\"",
                "egressd.toml:5: publish.operator: \" \" is not a name to be shown: who answers for these addresses, \
                 like \"Example Workflows Ltd\", in at most 200 characters",
                "egressd.toml:6: publish.abuse: \"a b\" is no contact: a URL or a mail address, like \
                 \"https://egress.example.net/\", of at most 200 visible ASCII characters",
            ],
        ),
    ]);
    // Who may be asked about a request may be asked about abuse, unless somebody else is named.
    for (abuse, wanted) in [("", "mailto:net@example.net"), ("abuse = \"abuse@example.net\"\n", "abuse@example.net")] {
        let config = good(&format!(
            "[publish]\nlisten = \"0.0.0.0:8702\"\nurl = \"https://egress.example.net/\"\n{abuse}[delivery]\ncontact = \
             \"mailto:net@example.net\"\n{SOURCE}"
        ));
        let says = config.publish.unwrap().says;
        assert_eq!((says.abuse.as_str(), says.url.as_str()), (wanted, "https://egress.example.net"));
    }
    check(&[
        (
            "[proxy]\nlisten = \"0.0.0.0:8703\"",
            &["egressd.toml:2: proxy.listen: 0.0.0.0:8703 is open to more than this host, and there is no \
               [[api.client]]: add one with the scope \"proxy\", or listen on 127.0.0.1"],
        ),
        (
            "[proxy]\nlisten = \"127.0.0.1:8700\"\nidle = \"10ms\"\nlifetimes = \"1h\"\ntls = { cert = \"x\" }",
            &[
                "egressd.toml:5: proxy.tls.cert: x cannot be read: No such file or directory (os error 2): name a readable \
                 PEM file",
                "egressd.toml:5: proxy.tls.key: is missing: name the PEM file with the private key",
                "egressd.toml:3: proxy.idle: \"10ms\" is out of range: 1s to 1d",
                "egressd.toml:4: proxy.lifetimes: is not a key of egressd: did you mean `lifetime`?",
                "egressd.toml:2: proxy.listen: 127.0.0.1:8700 collides with api.listen, which is 127.0.0.1:8700: give it \
                 another port",
            ],
        ),
        (
            "[proxy]\ntunnels = 10\ntunnels_per_tenant = 20\ntunnels_per_tenant_destination = 30",
            &[
                "egressd.toml:3: proxy.tunnels_per_tenant: 20 is more than tunnels, which is 10: at most 10, or a greater \
                 tunnels",
                "egressd.toml:4: proxy.tunnels_per_tenant_destination: 30 is more than tunnels_per_tenant, which is 20: at \
                 most 20, or a greater tunnels_per_tenant",
            ],
        ),
    ]);
    let proxy = good(&format!("[proxy]\ntunnels = 10\n{SOURCE}")).proxy.unwrap();
    assert_eq!((proxy.tunnels_per_tenant, proxy.tunnels_per_tenant_destination), (10, 10));
    assert_eq!(proxy.listen, SocketAddr::from(([127, 0, 0, 1], 8703)));
    assert_eq!(good(SOURCE).proxy, None);
    // Port 0 is one of the system's choice: two of them never meet.
    good(&format!("[api]\nlisten = \"127.0.0.1:0\"\n[metrics]\nlisten = \"127.0.0.1:0\"\n{SOURCE}"));
}

const DIGEST: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

#[test]
fn api_clients_are_complete_and_each_has_its_own_token() {
    let client = |name: &str, token: &str, tenant: &str, scopes: &str| {
        format!(
            "[[api.client]]\nname = \"{name}\"\ntoken_sha256 = \"{token}\"\ntenant = \"{tenant}\"\nscopes = {scopes}\n"
        )
    };
    let config = good(&format!("{}{SOURCE}", client("nodes", &DIGEST.to_uppercase(), "*", "[\"submit\", \"read\"]")));
    let nodes = &config.api.clients[0];
    assert_eq!((nodes.token_sha256[0], nodes.token_sha256[31], nodes.tenant.clone()), (0xba, 0xad, None));
    assert_eq!(nodes.scopes, Scopes { submit: true, read: true, operate: false, proxy: false });

    let twice = client("a", DIGEST, "acme", "[\"read\"]") + &client("a", DIGEST, "acme", "[\"read\"]");
    check(&[
        (
            "[api]\nlisten = \"0.0.0.0:8700\"",
            &["egressd.toml:2: api.client: is missing, and 0.0.0.0:8700 is open to more than this host: add an \
               [[api.client]] with name, token_sha256, tenant and scopes, or listen on 127.0.0.1"],
        ),
        (
            "[[api.client]]",
            &[
                "egressd.toml:1: api.client[0].name: is missing: name the client, for logs",
                "egressd.toml:1: api.client[0].token_sha256: is missing: printf %s TOKEN | sha256sum",
                "egressd.toml:1: api.client[0].tenant: is missing: \"*\" for any tenant, or one tenant's id",
                "egressd.toml:1: api.client[0].scopes: is missing: one or more of \"submit\", \"read\", \"operate\", \"proxy\"",
            ],
        ),
        (
            &client("a b", "secret", "", "[\"write\", 1]"),
            &[
                "egressd.toml:2: api.client[0].name: \"a b\" is not usable as a name: 1 to 128 visible ASCII \
                 characters without spaces",
                "egressd.toml:3: api.client[0].token_sha256: is not 64 hex digits: the SHA-256 of the token, never \
                 the token: printf %s TOKEN | sha256sum",
                "egressd.toml:4: api.client[0].tenant: \"\" is not usable as a tenant's id: 1 to 128 visible ASCII \
                 characters without spaces",
                "egressd.toml:5: api.client[0].scopes[0]: \"write\" is not a scope: submit, read, operate or proxy",
                "egressd.toml:5: api.client[0].scopes[1]: is an integer: write a string in quotes",
            ],
        ),
        (
            &client("a", DIGEST, "*", "[]"),
            &[
                "egressd.toml:5: api.client[0].scopes: is empty: one or more of \"submit\", \"read\", \"operate\", \"proxy\"",
            ],
        ),
        (
            &twice,
            &[
                "egressd.toml:7: api.client[1].name: \"a\" stands here twice: each needs its own; join the two tables",
                "egressd.toml:8: api.client[1].token_sha256: is another client's too: give each client a token of its \
                 own",
            ],
        ),
    ]);
    // A token written where its digest belongs is not repeated in the message.
    assert!(!Desk::new().problems(&client("a", "hunter2-hunter2", "*", "[\"read\"]")).join("").contains("hunter2"));
}

/// A certificate that can stand for everything, and its key.
fn pair() -> (String, String) {
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn tls_files_are_read_at_load() {
    let place = Desk::new();
    let ((cert, key), (_, other_key)) = (pair(), pair());
    for (name, text) in [("a.crt", &cert), ("a.key", &key), ("other.key", &other_key)] {
        place.write(name, text);
    }
    place.write("empty.pem", "");
    place.write("broken.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n");
    place.write("nonsense.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    for (text, starts) in [
        (
            "[api]\ntls = { cert = \"a.crt\", key = \"a.key\", client_ca = \"a.crt\" }\n[tls]\nextra_ca = [\"a.crt\"]",
            vec![],
        ),
        (
            "[api]\ntls = { cert = \"a.crt\" }",
            vec!["egressd.toml:2: api.tls.key: is missing: name the PEM file with the private key"],
        ),
        (
            "[api]\ntls = { cert = \"none.crt\", key = \"a.crt\", ca = \"x\" }",
            vec![
                "egressd.toml:2: api.tls.cert: none.crt cannot be read: No such file",
                "egressd.toml:2: api.tls.key: a.crt holds no private key",
                "egressd.toml:2: api.tls.ca: is not a key of egressd",
            ],
        ),
        (
            "[api]\ntls = { cert = \"a.crt\", key = \"other.key\" }",
            vec!["egressd.toml:2: api.tls.key: other.key does not go with a.crt"],
        ),
        (
            "[tls]\nextra_ca = [\"empty.pem\", \"broken.pem\", \"nonsense.pem\"]",
            vec![
                "egressd.toml:2: tls.extra_ca[0]: empty.pem holds no certificate",
                "egressd.toml:2: tls.extra_ca[1]: broken.pem is not valid PEM",
                "egressd.toml:2: tls.extra_ca[2]: certificate 1 of nonsense.pem cannot be an authority",
            ],
        ),
        ("[tls]\nroots = \"mine\"", vec!["egressd.toml:2: tls.roots: \"mine\" is not a set of roots"]),
    ] {
        let found = place.problems(&format!("{text}\n{SOURCE}"));
        assert_eq!(found.len(), starts.len(), "{text}\n{found:#?}");
        for (found, start) in found.iter().zip(starts) {
            assert!(found.starts_with(start), "{found}\n{start}");
        }
    }
}

#[test]
fn name_servers_come_from_the_file_or_from_the_host() {
    let place = Desk::new();
    let servers = |text: &str| place.read(&format!("{text}\n{SOURCE}")).unwrap().dns_servers;
    let shown = |servers: Vec<SocketAddr>| servers.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(" ");
    assert_eq!(shown(servers("")), "192.0.2.53:53");
    assert_eq!(shown(servers("[dns]\nservers = []")), "192.0.2.53:53");
    assert_eq!(
        shown(servers("[dns]\nservers = [\"192.0.2.1\", \"192.0.2.1:5353\", \"2001:db8::1\", \"[2001:db8::1]:54\"]")),
        "192.0.2.1:53 192.0.2.1:5353 [2001:db8::1]:53 [2001:db8::1]:54"
    );
    place.write("resolv.conf", "# none\nsearch corp\nnameserver fe80::1%eth0\nnameserver\n nameserver 192.0.2.7 # x\n");
    assert_eq!(shown(servers("")), "192.0.2.7:53");
    place.write("resolv.conf", "options edns0\n");
    assert_eq!(
        place.problems(SOURCE),
        ["egressd.toml: dns.servers: is empty, and resolv.conf names no usable server: name the servers to ask, like \
          servers = [\"192.0.2.53\"]"]
    );
    fs::remove_file(place.dir.path().join("resolv.conf")).unwrap();
    assert_eq!(place.problems(SOURCE).len(), 1);
    check(&[
        (
            "[dns]\nservers = [\"ns.example.com\", \"0.0.0.0\", \"192.0.2.1:0\", \"192.0.2.1\", \"192.0.2.1:53\"]",
            &[
                "egressd.toml:2: dns.servers[0]: \"ns.example.com\" is not the address of a name server: an IP \
                 address, or one with a port: \"192.0.2.53:53\"",
                "egressd.toml:2: dns.servers[1]: \"0.0.0.0\" cannot be asked: name the address at which the name \
                 server answers",
                "egressd.toml:2: dns.servers[2]: \"192.0.2.1:0\" cannot be asked: name the address at which the name \
                 server answers",
                "egressd.toml:2: dns.servers[4]: 192.0.2.1:53 is named twice: name it once",
            ],
        ),
        ("[dns]\nservers = \"192.0.2.1\"", &["egressd.toml:2: dns.servers: is a string: write an array"]),
    ]);
}

#[test]
fn a_source_stands_in_the_published_file() {
    let place = Desk::new();
    let config = place
        .read(
            "[[egress.source]]\npublic = \"198.51.100.10\"\nbind = \"10.0.0.10\"\n\
             [[egress.source]]\npublic = \"2001:db8::10\"\npool = \"six\"\n",
        )
        .unwrap();
    let shown: Vec<_> = config.egress.sources.iter().map(|s| format!("{} {} {}", s.public, s.bind, s.pool)).collect();
    assert_eq!(shown, ["198.51.100.10 10.0.0.10 default", "2001:db8::10 2001:db8::10 six"]);
    for (text, expected) in [
        (
            "",
            vec![
                "egressd.toml: egress.source: no source: nothing could be sent: add at least one [[egress.source]] \
                   with public = \"ADDRESS\"",
            ],
        ),
        (
            "[[egress.source]]",
            vec![
                "egressd.toml:1: egress.source[0].public: is missing: name the address as the world \
                                    sees it",
            ],
        ),
        (
            "[[egress.source]]\npublic = \"198.51.100.99\"",
            vec![
                "egressd.toml:2: egress.source[0].public: 198.51.100.99 is not in the published file: publish it \
                  there, in time, or drop this source",
            ],
        ),
        (
            "[[egress.source]]\npublic = \"198.51.100.10\"\nbind = \"::1\"",
            vec![
                "egressd.toml:3: egress.source[0].bind: ::1 is of another family than public, which is \
                  198.51.100.10: both IPv4, or both IPv6",
            ],
        ),
        (
            "[[egress.source]]\npublic = \"198.51.100.10\"\n[[egress.source]]\npublic = \"198.51.100.10\"\nbind = \
             \"10.0.0.1\"",
            vec![
                "egressd.toml:4: egress.source[1].public: 198.51.100.10 is the address of egress.source[0] already: \
                  keep one of the two",
            ],
        ),
        (
            "[[egress.source]]\npublic = \"198.51.100.10\"\nbind = \"10.0.0.1\"\n[[egress.source]]\npublic = \
             \"198.51.100.11\"\nbind = \"10.0.0.1\"",
            vec![
                "egressd.toml:6: egress.source[1].bind: 10.0.0.1 is the address of egress.source[0] already: keep \
                  one of the two",
            ],
        ),
        (
            "[[egress.source]]\npublic = \"0.0.0.0\"\n[[egress.source]]\npublic = \"::ffff:198.51.100.10\"\n\
             [[egress.source]]\npublic = \"198.51.100.10\"\nbind = \"eth0\"\npool = \"a b\"\nfamily = 4",
            vec![
                "egressd.toml:2: egress.source[0].public: 0.0.0.0 is no address that a connection can come from: name \
                 one of this host's",
                "egressd.toml:4: egress.source[1].public: ::ffff:198.51.100.10 is an IPv4 address in IPv6 form: write \
                 the IPv4 address",
                "egressd.toml:7: egress.source[2].bind: \"eth0\" is not an IP address: write one address, like \
                 \"198.51.100.10\"",
                "egressd.toml:8: egress.source[2].pool: \"a b\" is not a pool's name: letters, digits, `-`, `_` and \
                 `.`",
                "egressd.toml:9: egress.source[2].family: is not a key of egressd: remove it; known here: bind, pool, \
                 public",
            ],
        ),
        (
            "[egress]\npublished = \"missing.txt\"\n[[egress.source]]\npublic = \"198.51.100.99\"",
            vec![
                "egressd.toml:2: egress.published: missing.txt cannot be read: No such file or directory (os error \
                  2): name the file with the published addresses, one a line",
            ],
        ),
        (
            "[[egress.source]]\npublic = \"198.51.100.10\"\npool = \"vip\"",
            vec![
                "egressd.toml: egress.source: no source is in a pool that any tenant uses: put a source into the \
                  pool \"default\", or give a [[tenant]] one of theirs",
            ],
        ),
    ] {
        assert_eq!(place.problems(text), expected, "\n{text}");
    }
    place.write("public-ips.txt", "198.51.100.10\n198.51.100.300\n198.51.100.10\n");
    assert_eq!(
        place.problems(SOURCE),
        [
            "public-ips.txt:2: \"198.51.100.300\" is not an IP address: one IPv4 or IPv6 address a line; `#` comments",
            "public-ips.txt:3: 198.51.100.10 stands in line 1 already: keep one of the two lines",
        ]
    );
}

#[test]
fn a_source_was_announced_long_enough() {
    let place = Desk::new();
    for (line, notice, refused) in [
        ("198.51.100.10", "7d", None),
        ("198.51.100.10 announced=2026-11-01 active=2026-11-08", "7d", None),
        ("198.51.100.10 announced=2026-11-01 active=2026-11-07", "7d", Some("with 6d of notice, less than")),
        ("198.51.100.10 announced=2026-11-01 active=2026-11-07", "144h", None),
        ("198.51.100.10 announced=2026-12-01 active=2026-12-02", "7d", Some("with 1d of notice, less than")),
        ("198.51.100.10 announced=2026-11-01", "7d", None),
        ("198.51.100.10 active=2026-11-01", "7d", None),
        ("198.51.100.10 active=2026-12-24", "7d", Some("its notice is unknown")),
        ("198.51.100.10 active=2026-12-24", "0s", None),
        ("198.51.100.10 retires=2026-11-01", "7d", None),
        // What is no source of this node is another's business.
        ("198.51.100.10\n198.51.100.11 announced=2026-11-01 active=2026-11-02", "7d", None),
    ] {
        place.write("public-ips.txt", line);
        let found = place.problems(&format!("[egress]\nnotice = \"{notice}\"\n{SOURCE}"));
        assert_eq!(found.len(), usize::from(refused.is_some()), "{line} {found:?}");
        if let Some(refused) = refused {
            assert!(found[0].starts_with("egressd.toml:4: egress.source[0].public: 198.51.100.10 "), "{found:?}");
            assert!(found[0].contains(refused), "{found:?}");
        }
    }
}

#[test]
fn reflectors_are_urls_and_each_is_named_once() {
    let config = good(&format!("[egress.verify]\nreflectors = [\"https://a.example.net/whoami\"]\n{SOURCE}"));
    let verify = config.egress.verify.unwrap();
    assert_eq!((verify.reflectors.len(), verify.every), (1, Duration::from_secs(900)));
    check(&[
        (
            "[egress.verify]",
            &["egressd.toml:1: egress.verify.reflectors: is missing: name at least one URL that answers with the \
               caller's address"],
        ),
        (
            "[egress.verify]\nreflectors = []",
            &[
                "egressd.toml:2: egress.verify.reflectors: is empty: name at least one URL, or leave [egress.verify] out",
            ],
        ),
        (
            "[egress.verify]\nreflectors = [\"http://a.example.net/\", \"http://A.example.net\"]",
            &[
                "egressd.toml:2: egress.verify.reflectors[1]: http://a.example.net/ is named twice: name each reflector \
               once",
            ],
        ),
        (
            "[egress.verify]\nreflectors = [\"http://a.example.net/\"]\nevery = \"500ms\"",
            &["egressd.toml:3: egress.verify.every: \"500ms\" is out of range: 1s to 1d"],
        ),
    ]);
    let found = Desk::new().problems(&format!("[egress.verify]\nreflectors = [\"ftp://x/\", \"a\"]\n{SOURCE}"));
    assert_eq!(found.len(), 2, "{found:?}");
}

const MAIL: &str = "[destination.email]\nrelay = \"smtps://mail.example.net\"\nfrom = \"n@example.net\"\n";

#[test]
fn mail_is_a_relay_a_sender_and_an_address_for_each_tenant() {
    let desk = Desk::new();
    desk.write("password", "p w\n");
    let text = "[delivery]\ndrain = \"6s\"\n[destination.email]\nrelay = \"smtp://Mail.Example.NET\"\nuser = \"u\"\n\
                password_file = \"password\"\nfrom = \"Work, flows <n@example.net>\"\n[[tenant]]\nid = \"a\"\n\
                email = \"o@a.example\"\ncollaborators = [\"c@a.example\"]\n";
    let text = text.replace("Work, flows", "\\\"Work, flows\\\"");
    let config = desk.read(&format!("{text}{SOURCE}")).unwrap_or_else(|problems| panic!("{problems:#?}"));
    let email = config.destinations.email.clone().expect("set up");
    let host = Host::Name("mail.example.net".into());
    assert_eq!(email.relay, Destination { scheme: Scheme::Smtp, host, port: 587 });
    assert_eq!(email.from.to_string(), "\"Work, flows\" <n@example.net>");
    let login = email.login.expect("a login");
    assert_eq!((login.user.as_str(), login.password.expose()), ("u", "p w"));
    assert!(!format!("{login:?}").contains("p w"), "{login:?}");
    assert_eq!(email.deadline, Duration::from_secs(15));
    let tenant = config.tenant(&TenantId::new("a")).expect("it differs");
    let mail = tenant.mail.clone().expect("an address");
    assert_eq!((mail.owner.to_string(), mail.collaborators.len()), ("o@a.example".to_owned(), 1));
    // Nothing that is under way is cut off at the end.
    assert_eq!(config.delivery.drain, Duration::from_secs(15));
    assert_eq!((config.deadline_of(Kind::Http), config.longest_deadline()), (Duration::from_secs(5), email.deadline));

    for (relay, scheme, port) in [
        ("smtps://a.example.net", Scheme::Smtps, 465),
        ("smtps://[2001:db8::1]", Scheme::Smtps, 465),
        ("smtp://192.0.2.25:25", Scheme::Smtp, 25),
        ("smtps://[2001:db8::1]:80", Scheme::Smtps, 80),
    ] {
        let config = good(&format!("{}{SOURCE}", MAIL.replace("smtps://mail.example.net", relay)));
        let email = config.destinations.email.expect("set up");
        assert_eq!((email.relay.scheme, email.relay.port, email.login), (scheme, port, None), "{relay}");
    }
    assert_eq!(good(SOURCE).destinations, Destinations::default());
}

#[test]
fn what_is_wrong_with_mail_is_named() {
    let desk = Desk::new();
    desk.write("empty", "\n");
    desk.write("two", "a\nb\n");
    let relays = [
        ("http://mail.example.net", "begins with neither smtps:// nor smtp://"),
        ("mail.example.net:465", "begins with neither"),
        ("smtps://u:s3cret@mail.example.net", "has a user name or a password in it"),
        ("smtps://mail.example.net/x", "more than a host and a port"),
        ("smtps://mail.example.net:0", "port 0"),
        ("smtps://mail.example.net:65536", "its port is not a number"),
        ("smtps://", "it has no host"),
        ("smtps://a b", "whitespace"),
        ("smtps://[::1", "not closed"),
    ];
    for (relay, says) in relays {
        let found = desk.problems(&format!("{}{SOURCE}", MAIL.replace("smtps://mail.example.net", relay)));
        assert_eq!(found.len(), 1, "{relay}: {found:?}");
        assert!(found[0].starts_with("egressd.toml:2: destination.email.relay: "), "{found:?}");
        assert!(found[0].contains(says) && !found[0].contains("s3cret"), "{relay}: {found:?}");
    }
    for from in [
        "x",
        "A <a@b",
        "a@b, c@d",
        "\\u00e9@example.net",
        "a@[192.0.2.1]",
        "\\\"a b\\\"@example.net",
        "N\\r\\nX: y <a@b.example>",
    ] {
        let found = desk.problems(&format!("{}{SOURCE}", MAIL.replace("n@example.net", from)));
        assert_eq!(found.len(), 1, "{from}: {found:?}");
        assert!(found[0].starts_with("egressd.toml:3: destination.email.from: "), "{found:?}");
    }
    for (more, key) in [
        ("user = \"u\"\n", "password_file: is missing"),
        ("password_file = \"two\"\n", "password_file: two holds no password"),
        ("user = \"u\"\npassword_file = \"empty\"\n", "password_file: empty holds no password"),
        ("user = \"u\"\npassword_file = \"none\"\n", "password_file: none cannot be read"),
        ("user = \"\"\npassword_file = \"two\"\n", "user: is empty"),
        ("deadline = \"61s\"\n", "deadline: \"61s\" is out of range: 10ms to 1m"),
        ("to = \"x@y\"\n", "to: is not a key of egressd"),
    ] {
        let found = desk.problems(&format!("{MAIL}{more}{SOURCE}"));
        assert!(found.iter().any(|problem| problem.contains(&format!("destination.email.{key}"))), "{more}: {found:?}");
    }
    for (tenant, says) in [
        ("email = \"x\"", "tenant[0].email: \"x\" is not a mail address"),
        ("email = \"A <a@b.example>\"", "tenant[0].email: \"A <a@b.example>\" is not a mail address"),
        ("collaborators = [\"a@b.example\"]", "tenant[0].email: is missing, and collaborators are named"),
        ("email = \"a@b.example\"\ncollaborators = [\"b\"]", "tenant[0].collaborators[0]: \"b\" is not a mail address"),
    ] {
        let found = desk.problems(&format!("[[tenant]]\nid = \"a\"\n{tenant}\n{SOURCE}"));
        assert!(found.len() == 1 && found[0].contains(says), "{tenant}: {found:?}");
    }
    let many = vec!["\"a@b.example\""; limits::MAIL_RECIPIENTS_MAX].join(", ");
    let found =
        desk.problems(&format!("[[tenant]]\nid = \"a\"\nemail = \"a@b.example\"\ncollaborators = [{many}]\n{SOURCE}"));
    assert!(found.len() == 1 && found[0].contains("too many addresses"), "{found:?}");
    check(&[
        (
            "[destination]\nkafka = 1",
            &["egressd.toml:2: destination.kafka: is not a key of egressd: remove it; known here: email, s3, sql"],
        ),
        (
            "[[policy.exception]]\nnetworks = [\"127.0.0.0/8\"]\nreason = \"r\"\ndestinations = [\"smtp\"]",
            &[
                "egressd.toml:4: policy.exception[0].destinations[0]: \"smtp\" is no kind of destination: \"http\", \"email\", \"s3\", \"sql\"",
            ],
        ),
    ]);
}

const S3: &str = "[destination.s3]\nendpoint = \"https://S3.example.net\"\ncredentials_file = \"credentials\"\n";

#[test]
fn s3_is_an_endpoint_credentials_and_when_a_batch_closes() {
    let desk = Desk::new();
    desk.write("credentials", "[default]\naws_access_key_id = AKID\naws_secret_access_key = s3cret\n");
    let read =
        |more: &str| desk.read(&format!("{S3}{more}{SOURCE}")).unwrap_or_else(|problems| panic!("{problems:#?}"));
    let config = read("");
    let set_up = config.destinations.s3.clone().expect("set up");
    let host = Host::Name("s3.example.net".into());
    assert_eq!(set_up.endpoint, Destination { scheme: Scheme::Https, host, port: 443 });
    assert_eq!((set_up.path_style, set_up.region.as_str(), set_up.buckets.len()), (false, "us-east-1", 0));
    assert_eq!(set_up.gathering, Gathering::default());
    assert_eq!(config.deadline_of(Kind::S3), Duration::from_secs(30));
    let config = read(
        "path_style = true\nregion = \"eu-1\"\nbuckets = [\"logs-*\", \"a.b\"]\nevery = \"2s\"\nbatch_bytes = \"1MiB\"\n\
         batch_sends = 7\ndeadline = \"3s\"\ngive_up = \"4m\"\n",
    );
    let set_up = config.destinations.s3.clone().expect("set up");
    assert!(set_up.path_style && set_up.allows("logs-1") && set_up.allows("a.b") && !set_up.allows("other"));
    let seconds = Duration::from_secs;
    let wanted = Gathering { every: seconds(2), bytes: MIB, sends: 7, deadline: seconds(3), give_up: seconds(240) };
    assert_eq!(set_up.gathering, wanted);
}

#[test]
fn what_is_wrong_with_s3_is_named() {
    let desk = Desk::new();
    desk.write("credentials", "aws_access_key_id = AKID\naws_secret_access_key = s3cret\n");
    desk.write("two", "[a]\n[b]\n");
    for (was, is, says) in [
        ("https://S3.example.net", "ftp://s3.example.net", "endpoint: "),
        ("https://S3.example.net", "https://s3.example.net/bucket", "more than a host and a port"),
        ("https://S3.example.net", "https://u:s3cret@s3.example.net", "endpoint: "),
        ("https://S3.example.net", "https://192.0.2.9", "path_style: is false, and endpoint is an address"),
        ("\"credentials\"", "\"none\"", "credentials_file: none cannot be read"),
        ("\"credentials\"", "\"two\"", "credentials_file: two has more than one profile"),
        ("\"credentials\"\n", "\"credentials\"\nbuckets = [\"No\"]\n", "buckets[0]: \"No\" is no bucket's name"),
        ("\"credentials\"\n", "\"credentials\"\nregion = \"US\"\n", "region: \"US\" is no region"),
        ("\"credentials\"\n", "\"credentials\"\nevery = \"0s\"\n", "every: \"0s\" is out of range"),
        ("\"credentials\"\n", "\"credentials\"\nbatch_sends = 0\n", "batch_sends: "),
        ("\"credentials\"\n", "\"credentials\"\ndeadline = \"61s\"\n", "deadline: \"61s\" is out of range"),
        ("\"credentials\"\n", "\"credentials\"\nkey = \"x\"\n", "key: is not a key of egressd"),
    ] {
        let found = desk.problems(&format!("{}{SOURCE}", S3.replace(was, is)));
        assert!(
            found.len() == 1 && found[0].contains(&format!("destination.s3.{says}")) || found[0].contains(says),
            "{found:?}"
        );
        assert!(found.len() == 1 && !found[0].contains("s3cret"), "{found:?}");
    }
    let found = desk.problems(&format!("[destination.s3]\n{SOURCE}"));
    assert_eq!(found.len(), 2, "{found:?}");
}

const SQL: &str = "[destination.sql]\nurl = \"postgres://egressd@W.example.net/events?sslmode=verify-full\"\n";

#[test]
fn sql_is_a_database_and_a_schema_for_each_tenant() {
    let desk = Desk::new();
    desk.write("password", "s3cret\n");
    let tenants = "[[tenant]]\nid = \"Acme\"\n[[tenant]]\nid = \"b.c\"\n";
    let text =
        format!("{SQL}password_file = \"password\"\nschema = \"t_{{tenant}}\"\nevery = \"2s\"\n{tenants}{SOURCE}");
    let config = desk.read(&text).unwrap_or_else(|problems| panic!("{problems:#?}"));
    let set_up = config.destinations.sql.clone().expect("set up");
    let host = Host::Name("w.example.net".into());
    assert_eq!(set_up.server, Destination { scheme: Scheme::PostgresTls, host, port: 5432 });
    assert_eq!((set_up.database.as_str(), set_up.user.as_str()), ("events", "egressd"));
    assert!(!format!("{set_up:?}").contains("s3cret"), "{set_up:?}");
    let schema = |tenant: &str| set_up.schema_of(&TenantId::new(tenant)).ok();
    assert_eq!([schema("Acme"), schema("b.c")], ["t_acme", "t_b_c"].map(|name| Some(name.to_owned())));
    assert_eq!((schema("acme"), schema("x.y")), (None, None));
    assert_eq!(config.deadline_of(Kind::Sql), Duration::from_secs(30));
    let plain =
        good(&format!("{}{SOURCE}", SQL.replace("verify-full", "disable").replace("W.example.net", "[::1]:6000")));
    let server = plain.destinations.sql.clone().expect("set up").server.clone();
    assert_eq!((server.scheme, server.port), (Scheme::Postgres, 6000));

    let desk = Desk::new();
    for (was, is, says) in [
        ("postgres://", "mysql://", "does not begin with postgres://"),
        ("egressd@", "", "names no user"),
        ("egressd@", "egressd:s3cret@", "has a password in it"),
        ("/events", "", "names no database"),
        ("verify-full", "prefer", "may end without TLS"),
        ("verify-full", "verify-full&x=1", "may end without TLS"),
        ("egressd@", "a'b@", "other than letters"),
        ("full\"\n", "full\"\nschema = \"all\"\n", "does not keep tenants apart"),
        ("full\"\n", "full\"\nschema = \"{tenant}-x\"\n", "does not keep tenants apart"),
        (
            "full\"\n",
            "full\"\n[[tenant]]\nid = \"a.b\"\n[[tenant]]\nid = \"a-b\"\n",
            "tenant[1].id: \"a-b\" has the schema \"a_b\"",
        ),
        ("full\"\n", "full\"\n[[tenant]]\nid = \"public\"\n", "tenant[0].id: \"public\" has no schema"),
    ] {
        let found = desk.problems(&format!("{}{SOURCE}", SQL.replace(was, is)));
        assert!(found.len() == 1 && found[0].contains(says) && !found[0].contains("s3cret"), "{is}: {found:?}");
    }
    let tier = "[store]\nengine = \"postgres\"\nurl = \"postgres://egressd@db.example.net/egressd\"\n";
    for destination in [SQL, S3] {
        desk.write("credentials", "aws_access_key_id = a\naws_secret_access_key = b\n");
        let config =
            desk.read(&format!("{destination}{tier}{SOURCE}")).unwrap_or_else(|problems| panic!("{problems:?}"));
        // What has begun is over sooner: nothing waits for a batch's tries.
        assert_eq!(config.longest_deadline(), config.delivery.deadline);
    }
}

#[test]
fn the_policy_is_read_as_written() {
    let config = good(&format!(
        "[policy]\nmode = \"report\"\nports = [80, \"8000-8999\"]\ndeny_hosts = [\"*.Example.COM.\"]\n\
         deny_networks = [\"8.8.8.0/24\", \"2001:4860::/32\", \"1.1.1.1\"]\n\
         [[policy.exception]]\nnetworks = [\"10.20.0.0/16\", \"fd12::/16\"]\nhosts = [\"billing.corp\"]\n\
         reason = \"ours\"\ntenants = [\"billing\"]\n\
         [[tenant]]\nid = \"acme\"\nallow_hosts = [\"a.example.net\"]\ndeny_hosts = [\"b.example.net\"]\nqueued = 5\n\
         [[tenant]]\nid = \"open\"\nallow_hosts = []\nkeep_bodies = false\n{SOURCE}"
    ));
    assert_eq!(config.policy.mode, PolicyMode::Report);
    assert_eq!(config.policy.ports, [(80, 80), (8000, 8999)]);
    assert_eq!(config.policy.deny_hosts, [HostPattern::Under("example.com".into())]);
    assert_eq!(config.policy.deny_networks.len(), 3);
    assert_eq!(config.policy.exceptions[0].tenants, [TenantId::new("billing")]);
    let exact = |name: &str| vec![HostPattern::Exact(name.into())];
    assert_eq!(config.policy.tenants[0].allow, Some(exact("a.example.net")));
    assert_eq!(config.policy.tenants[0].deny, exact("b.example.net"));
    assert_eq!(config.policy.tenants[1].allow, None);
    let acme = config.tenant(&TenantId::new("acme")).unwrap();
    assert_eq!((acme.in_flight, acme.queued, acme.keep_bodies), (2000, 5, true));
    assert!(!config.keeps_bodies(&TenantId::new("open")));
    assert!(config.keeps_bodies(&TenantId::new("anyone")));
}

#[test]
fn an_exception_opens_little_and_never_metadata() {
    let exception = |text: &str| format!("[[policy.exception]]\nreason = \"x\"\n{text}");
    for (text, expected) in [
        ("networks = [\"10.0.0.0/8\", \"fd00::/16\"]", None),
        ("networks = [\"169.254.0.0/16\"]", None),
        ("networks = [\"0.0.0.0/0\"]", Some("networks[0]: \"0.0.0.0/0\" is wider than /8: ")),
        ("networks = [\"10.0.0.0/7\"]", Some("networks[0]: \"10.0.0.0/7\" is wider than /8: ")),
        ("networks = [\"fc00::/7\"]", Some("networks[0]: \"fc00::/7\" is wider than /16: ")),
        ("networks = [\"169.254.169.254\"]", Some("networks[0]: \"169.254.169.254\" is a metadata address, which no")),
        ("networks = [\"fd00:ec2::254/128\"]", Some("networks[0]: \"fd00:ec2::254/128\" is a metadata address, which")),
        ("networks = [\"::ffff:10.0.0.0/104\"]", Some("networks[0]: \"::ffff:10.0.0.0/104\" is an IPv4 network in")),
        (
            "networks = [\"10.0.0.1/8\"]",
            Some("networks[0]: \"10.0.0.1/8\" has bits set beyond its prefix: write \"10.0"),
        ),
        ("networks = [\"ten\"]", Some("networks[0]: \"ten\" is not a network: ")),
        ("networks = \"10.0.0.0/8\"", Some("networks: is a string: write an array")),
        ("networks = []", Some("networks: the exception opens nothing: ")),
        ("tenants = [\"a\"]", Some("networks: the exception opens nothing: ")),
        ("hosts = [\"x.corp\"]\ntenants = []", Some("tenants: is empty: name tenants, or leave the key out")),
        ("hosts = [\"x.corp\"]\ntenants = [\"*\"]", Some("tenants[0]: \"*\" stands for every tenant: name one")),
        ("hosts = [\"*.internal\"]", None),
        ("hosts = [\"metadata.google.internal\"]", Some("hosts[0]: \"metadata.google.internal\" is a metadata name, ")),
        ("hosts = [\"*.metadata.goog\"]", Some("hosts[0]: \"*.metadata.goog\" is a metadata name, which no exception")),
        ("hosts = [\"169.254.169.254\"]", Some("hosts[0]: \"169.254.169.254\" is a metadata name, which no exception")),
    ] {
        let found = Desk::new().problems(&format!("{}\n{SOURCE}", exception(text)));
        assert_eq!(found.len(), usize::from(expected.is_some()), "{text}\n{found:#?}");
        if let Some(expected) = expected {
            assert!(found[0].contains(&format!("policy.exception[0].{expected}")), "{text}\n{found:#?}");
        }
    }
    check(&[(
        "[[policy.exception]]\nnetworks = [\"10.0.0.0/8\"]",
        &["egressd.toml:1: policy.exception[0].reason: is missing: say why it is opened: it is logged at every start"],
    )]);
}

#[test]
fn ports_patterns_and_modes_are_checked() {
    for (text, expected) in [
        ("mode = \"off\"", "policy.mode: \"off\" is not a mode: \"enforce\" or \"report\""),
        ("ports = []", "policy.ports: holds no port: nothing could be sent: for example"),
        ("ports = [0]", "policy.ports[0]: 0 is not a port: 1 to 65535"),
        ("ports = [65536]", "policy.ports[0]: 65536 is not a port: 1 to 65535"),
        ("ports = [\"443\"]", "policy.ports[0]: \"443\" is not a range of ports: "),
        ("ports = [\"9-1\"]", "policy.ports[0]: \"9-1\" runs backwards: "),
        ("ports = [\"1-+9\"]", "policy.ports[0]: \"1-+9\" is not a range of ports: "),
        ("ports = [\"1-65536\"]", "policy.ports[0]: 65536 is not a port: "),
        ("deny_hosts = [\"*\"]", "policy.deny_hosts[0]: "),
        ("deny_hosts = [\"a.*.com\"]", "policy.deny_hosts[0]: "),
        ("deny_hosts = [\"https://a.com\"]", "policy.deny_hosts[0]: "),
        ("distinct_destinations_per_minute = 0", "policy.distinct_destinations_per_minute: 0 is out of range: "),
    ] {
        let found = Desk::new().problems(&format!("[policy]\n{text}\n{SOURCE}"));
        assert_eq!(found.len(), 1, "{text}\n{found:#?}");
        assert!(found[0].starts_with(&format!("egressd.toml:2: {expected}")), "{text}\n{found:#?}");
    }
}

#[test]
fn tenants_names_and_redaction_are_checked() {
    check(&[
        ("[[tenant]]", &["egressd.toml:1: tenant[0].id: is missing: name the tenant that differs"]),
        (
            "[[tenant]]\nid = \"a\"\n[[tenant]]\nid = \"a\"",
            &["egressd.toml:4: tenant[1].id: \"a\" stands here twice: each needs its own; join the two tables"],
        ),
        (
            "[[tenant]]\nid = \"a\"\npool = \"vip\"",
            &["egressd.toml:3: tenant[0].pool: no source is in the pool \"vip\": give a source this pool, or name \
               another"],
        ),
        (
            "[[tenant]]\nid = \"a\"\nin_flight = 10001\nqueued = 0\nkeep_bodies = 1",
            &[
                "egressd.toml:3: tenant[0].in_flight: 10001 is out of range: 1 to 10000",
                "egressd.toml:4: tenant[0].queued: 0 is out of range: 1 to 1000000",
                "egressd.toml:5: tenant[0].keep_bodies: is an integer: write true or false",
            ],
        ),
        ("tenant = [1]", &["egressd.toml:1: tenant[0]: is an integer: write a table"]),
        (
            "node = \"a b\"",
            &[
                "egressd.toml:1: node: \"a b\" is not usable as a name: 1 to 128 visible ASCII characters without spaces",
            ],
        ),
        (
            "[delivery]\nuser_agent = \"a\\r\\nb\"",
            &["egressd.toml:2: delivery.user_agent: \"a\\r\\nb\" is not a User-Agent: 1 to 256 visible ASCII \
               characters"],
        ),
        (
            "[redact]\nheaders = [\"x y\"]\njson_pointers = [\"customer\", \"\", \"/a~2\"]",
            &[
                "egressd.toml:2: redact.headers[0]: \"x y\" is not a header's name: write the name alone, like \
                 \"x-secret\"",
                "egressd.toml:3: redact.json_pointers[0]: \"customer\" is not a JSON Pointer: begin with /, write ~1 \
                 for / and ~0 for ~ in a name, like \"/customer/email\"",
                "egressd.toml:3: redact.json_pointers[1]: points to the whole body: name a part of it; a [[tenant]] \
                 may have keep_bodies = false",
                "egressd.toml:3: redact.json_pointers[2]: \"/a~2\" is not a JSON Pointer: begin with /, write ~1 for \
                 / and ~0 for ~ in a name, like \"/customer/email\"",
            ],
        ),
    ]);
    let config = good(&format!("[redact]\nheaders = [\"X-Secret\"]\n{SOURCE}"));
    assert_eq!(config.redact.headers, ["x-secret"]);
    assert_eq!(config.delivery.user_agent, format!("egressd/{}", env!("CARGO_PKG_VERSION")));
    let agents = [
        ("contact = \"https://egress.example.net/\"", "egressd/V (+https://egress.example.net/)"),
        ("contact = \"abuse@example.net\"\nuser_agent = \"ours\"", "ours (+abuse@example.net)"),
        ("contact = \"\"", "egressd/V"),
    ];
    for (keys, agent) in agents {
        let config = good(&format!("[delivery]\n{keys}\n{SOURCE}"));
        assert_eq!(config.delivery.user_agent, agent.replace('V', env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn a_reload_names_every_key_that_cannot_change() {
    let old = good(&format!("node = \"a\"\n{SOURCE}"));
    let new = good(&format!(
        "node = \"b\"\n[api]\nlisten = \"127.0.0.1:9700\"\n[proxy]\n[metrics]\nlisten = \"127.0.0.1:9701\"\n[publish]\nlisten = \
         \"127.0.0.1:9702\"\nproxies = [\"10.0.0.5\"]\n[delivery]\nin_flight = 5\n[store]\npath = \"/elsewhere\"\nretention = \"10d\"\n{SOURCE}"
    ));
    let file = Path::new("egressd.toml");
    assert_eq!(unchangeable(file, &old, &old), []);
    let shown: Vec<_> = unchangeable(file, &old, &new).iter().map(ConfigProblem::to_string).collect();
    let told = |key: &str, old: &str, new: &str| {
        format!(
            "egressd.toml: {key}: cannot change while running, from {old} to {new}: put it back, or restart egressd"
        )
    };
    assert_eq!(
        shown,
        [
            told("node", "a", "b"),
            told("api.listen", "127.0.0.1:8700", "127.0.0.1:9700"),
            told("metrics.listen", "127.0.0.1:8701", "127.0.0.1:9701"),
            told("publish.listen", "none", "127.0.0.1:9702"),
            told("publish.proxies", "[]", "[10.0.0.5/32]"),
            told("proxy.listen", "none", "127.0.0.1:8703"),
            told("store.path", "\"/var/lib/egressd\"", "\"/elsewhere\""),
            told("store.key_file", "\"/var/lib/egressd/key\"", "\"/elsewhere/key\""),
            told("store.retention", "30d", "10d"),
        ]
    );
}

proptest::proptest! {
    #[test]
    fn no_text_makes_reading_fail_otherwise_than_by_problems(text in "[ -~\n]{0,200}") {
        let place = std::path::PathBuf::from("/nonexistent/egressd.toml");
        let _ = Config::from_text(&text, &place, NOW.parse().unwrap());
    }
}

#[test]
fn what_is_found_out_about_a_source_is_told_with_the_others() {
    let desk = Desk::new();
    desk.write(
        "egressd.toml",
        "[delivery]\ndrain = \"1s\"\n[dns]\nservers = [\"192.0.2.1\"]\n[[egress.source]]\npublic = \"198.51.100.10\"\n\
         [[egress.source]]\npublic = \"198.51.100.11\"\nbind = \"10.0.0.11\"\n[[egress.source]]\npublic = \
         \"2001:db8::10\"\n",
    );
    let prove =
        |bind: IpAddr| if bind.is_ipv6() { Ok(()) } else { Err(wrong(format!("{bind} is not here"), "plumb it")) };
    let path = desk.dir.path().join("egressd.toml");
    let found = Config::load_proven(&path, NOW.parse().unwrap(), &prove).unwrap_err();
    let found: Vec<_> =
        found.iter().map(|problem| (problem.key.as_str(), problem.line, problem.detail.as_str())).collect();
    assert_eq!(
        found,
        [
            ("egress.source[0].public", Some(6), "198.51.100.10 is not here"),
            ("egress.source[1].bind", Some(9), "10.0.0.11 is not here"),
            ("delivery.drain", Some(2), "1s is less than deadline, which is 5s: deliveries would be cut off"),
        ]
    );
}

#[test]
fn the_list_is_found_in_a_file_with_other_problems() {
    let desk = Desk::new();
    desk.write("egressd.toml", "[egress]\npublished = \"list.txt\"\n[api]\ntls = 1\n");
    desk.write("list.txt", "198.51.100.10\n");
    let path = desk.dir.path().join("egressd.toml");
    let (file, list) = published(&path, NOW.parse().unwrap()).unwrap();
    assert_eq!((file, list.entries.len()), (desk.dir.path().join("list.txt"), 1));
    desk.write("list.txt", "198.51.100\n");
    assert_eq!(published(&path, NOW.parse().unwrap()).unwrap_err()[0].line, Some(1));
}
