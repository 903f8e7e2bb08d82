//! What a reload may not change.

use std::path::Path;

use super::super::Config;
use super::super::file::ConfigProblem;

/// The keys that differ and cannot change while running: listeners, the store and the node's name. They are problems
/// of the new file, so that a reload is refused with all of them named.
pub fn unchangeable(file: &Path, old: &Config, new: &Config) -> Vec<ConfigProblem> {
    let listener = |listen: Option<std::net::SocketAddr>| listen.map_or("none".to_owned(), |listen| listen.to_string());
    let tls = |config: &Config| if config.api.tls.is_some() { "on" } else { "off" }.to_owned();
    let published = |config: &Config| config.publish.as_ref().map(|publish| publish.listen);
    let has_tls = |config: &Config| config.publish.as_ref().is_some_and(|publish| publish.tls.is_some());
    let publish_tls = |config: &Config| if has_tls(config) { "on" } else { "off" }.to_owned();
    let proxies = |config: &Config| {
        let all = config.publish.iter().flat_map(|publish| &publish.proxies).map(ToString::to_string);
        format!("[{}]", all.collect::<Vec<_>>().join(", "))
    };
    let proxy = |config: &Config| config.proxy.as_ref().map(|proxy| proxy.listen);
    let has_tls = |config: &Config| config.proxy.as_ref().is_some_and(|proxy| proxy.tls.is_some());
    let proxy_tls = |config: &Config| if has_tls(config) { "on" } else { "off" }.to_owned();
    let text = |value: &dyn std::fmt::Debug| format!("{value:?}");
    let size = super::show_size;
    let time = super::show_duration;
    let (a, b) = (&old.store, &new.store);
    let keys = [
        ("node", old.node.clone(), new.node.clone()),
        ("api.listen", listener(Some(old.api.listen)), listener(Some(new.api.listen))),
        ("api.tls", tls(old), tls(new)),
        ("metrics.listen", listener(Some(old.metrics_listen)), listener(Some(new.metrics_listen))),
        ("publish.listen", listener(published(old)), listener(published(new))),
        ("publish.tls", publish_tls(old), publish_tls(new)),
        ("publish.proxies", proxies(old), proxies(new)),
        ("proxy.listen", listener(proxy(old)), listener(proxy(new))),
        ("proxy.tls", proxy_tls(old), proxy_tls(new)),
        ("telemetry", text(&old.telemetry), text(&new.telemetry)),
        ("store.engine", text(&a.postgres), text(&b.postgres)),
        ("store.path", text(&a.path), text(&b.path)),
        ("store.key_file", text(&a.key_file), text(&b.key_file)),
        ("store.retention", time(a.retention), time(b.retention)),
        ("store.body_retention", time(a.body_retention), time(b.body_retention)),
        ("store.max_bytes", size(a.max_bytes), size(b.max_bytes)),
        ("store.body_max_bytes", size(a.body_max_bytes), size(b.body_max_bytes)),
        ("store.tenant_max_bytes", size(a.tenant_max_bytes), size(b.tenant_max_bytes)),
    ];
    let changed = keys.into_iter().filter(|(_, old, new)| old != new);
    changed
        .map(|(key, old, new)| ConfigProblem {
            file: file.to_owned(),
            line: None,
            key: key.to_owned(),
            detail: format!("cannot change while running, from {old} to {new}"),
            fix: "put it back, or restart egressd".to_owned(),
        })
        .collect()
}
