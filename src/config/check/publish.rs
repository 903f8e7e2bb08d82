//! `[publish]`: the listener for the world, and what its page says.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::super::{Publish, PublishSays};
use super::{Mutual, Setting, Surroundings, Table, Wrong, listener, values, wrong};

impl<'a, 'r> Surroundings<'a, 'r> {
    /// The listener is there when its table is; an empty table is one that forgot the address.
    pub(super) fn publish(&self, table: Table<'a, 'r>) -> Option<(Publish, Setting<SocketAddr>)> {
        let listen = table.text("listen", SocketAddr::from(([0, 0, 0, 0], 8702)), listener);
        let written = table.is_written();
        if written && !listen.written {
            table.note("listen", wrong("is missing", "name the address to serve the list on, like \"0.0.0.0:8702\""));
        }
        let tls = table.table("tls");
        let tls = tls.is_written().then(|| self.listener_tls(tls, Mutual::Never)).flatten();
        let proxies = table.texts("proxies", network);
        let url = table.text("url", String::new(), own_url);
        let operator = table.text("operator", String::new(), operator);
        let abuse = table.text("abuse", String::new(), super::contact);
        table.finish();
        let says = PublishSays { url: url.value, operator: operator.value, abuse: abuse.value };
        let publish = Publish { listen: listen.value, tls, proxies: values(proxies), says };
        written.then_some((publish, listen))
    }
}

impl Publish {
    /// Whoever may be asked about a request may be asked about abuse.
    pub(super) fn or_contact(mut self, contact: &str) -> Self {
        if self.says.abuse.is_empty() {
            contact.clone_into(&mut self.says.abuse);
        }
        self
    }
}

/// Proxies: an address, or a network of them. Nobody may be everybody.
fn network(text: &str) -> Result<IpNet, Wrong> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    match network {
        Ok(network) if network.prefix_len() > 0 => Ok(network.trunc()),
        Ok(_) => {
            Err(wrong(format!("{text} is everybody"), "name the proxies: whoever is one may say for whom it asks"))
        }
        Err(_) => {
            Err(wrong(format!("{text:?} is not an address or a network"), "like \"10.0.0.5\" or \"10.0.0.0/28\""))
        }
    }
}

/// The beginning of URLs that others are under.
pub(super) fn own_url(text: &str) -> Result<String, Wrong> {
    let fix = "an https or http URL without query and fragment, like \"https://egress.example.net\"";
    let bad = || wrong("is not such a URL", fix);
    let url = url::Url::parse(text).map_err(|_| bad())?;
    let plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    if !matches!(url.scheme(), "http" | "https") || !plain || url.password().is_some() || text.len() > 1024 {
        return Err(bad());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn operator(text: &str) -> Result<String, Wrong> {
    if text.is_empty() || text.trim() != text || text.chars().any(char::is_control) || text.chars().count() > 200 {
        let fix = "who answers for these addresses, like \"Example Workflows Ltd\", in at most 200 characters";
        return Err(wrong(format!("{text:?} is not a name to be shown"), fix));
    }
    Ok(text.to_owned())
}
