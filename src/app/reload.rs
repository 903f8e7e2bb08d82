//! SIGHUP: the whole configuration or nothing of it.

use std::sync::Arc;

use metrics::{counter, gauge};

use super::{App, ours};
use crate::clock;
use crate::config::file::ConfigProblem;
use crate::config::{Config, check};
use crate::dial::Dialer;
use crate::doors::tls::{Acceptor, Listener};
use crate::redact::Redactor;

impl App {
    /// Puts the file in force as a whole, or changes nothing: then every problem is logged. Deliveries in flight
    /// are not touched. `Err`: how many problems there were.
    pub async fn reload(&self) -> Result<(), usize> {
        let result = self.try_reload().await;
        counter!("egressd_config_reloads_total", "result" => if result.is_ok() { "ok" } else { "refused" })
            .increment(1);
        gauge!("egressd_config_last_reload_successful").set(if result.is_ok() { 1.0 } else { 0.0 });
        match result {
            Ok(()) => {
                tracing::info!("the configuration was reloaded");
                self.tell_sources();
                Ok(())
            }
            Err(problems) => {
                for problem in &problems {
                    tracing::error!(%problem, "the configuration was not reloaded");
                }
                Err(problems.len())
            }
        }
    }

    async fn try_reload(&self) -> Result<(), Vec<String>> {
        let path =
            self.config_file.as_ref().ok_or_else(|| vec!["there is no configuration file to reload".to_owned()])?;
        let texts = |problems: Vec<ConfigProblem>| problems.iter().map(ToString::to_string).collect::<Vec<_>>();
        let now = clock::wall();
        let config = Config::load(path, now).map_err(texts)?;
        let unchangeable = check::unchangeable(path, &self.world.config(), &config);
        if !unchangeable.is_empty() {
            return Err(texts(unchangeable));
        }
        let trust = Dialer::prepare(&config).map_err(|error| vec![error.to_string()])?;
        let mut certificates = Vec::new();
        let of_publish = config.publish.as_ref().and_then(|publish| publish.tls.as_ref());
        let of_proxy = config.proxy.as_ref().and_then(|proxy| proxy.tls.as_ref());
        for (listener, acceptor, files) in [
            (Listener::Api, &self.api_tls, config.api.tls.as_ref()),
            (Listener::Publish, &self.publish_tls, of_publish),
            (Listener::Proxy, &self.proxy_tls, of_proxy),
        ] {
            if let (Some(acceptor), Some(files)) = (acceptor, files) {
                let loaded = Acceptor::load(listener, files).map_err(|error| vec![error.to_string()])?;
                certificates.push((acceptor, loaded));
            }
        }
        // Those of the file in force are let go of later, as deliveries may be leaving from them.
        let all = [&self.world.config().egress.sources[..], &config.egress.sources[..]].concat();
        let addresses = all.iter().map(|source| source.public).collect();
        let held = self.ledger.store.hold_sources(&self.ledger.session, addresses).await;
        let elsewhere = held.map_err(|error| vec![error.to_string()])?;
        // The last thing that may fail; after it everything is swapped.
        let notice = self.publication.replace(&config, now).await.map_err(|error| vec![error.to_string()])?;
        let config = Arc::new(config);
        let (previous, asked) = (self.world.sources(), self.world.config().egress.verify.is_some());
        let asks = config.egress.verify.is_some();
        self.world.reload(config.clone(), &notice);
        self.world.sources().held_elsewhere(&elsewhere);
        previous.forget_measures(&self.world.sources());
        if asked && !asks {
            self.world.sources().forget_verification();
        }
        self.world.set_ours(ours::look(&config, &self.listeners));
        self.ledger.redactor.store(Arc::new(Redactor::new(self.ledger.store.redact_key(), &config.redact)));
        for (acceptor, loaded) in certificates {
            acceptor.replace(&loaded);
        }
        self.deliverer.reload(trust);
        self.dispatcher.reload();
        if let Some(tunnels) = &self.tunnels {
            tunnels.proxy.reload();
        }
        Ok(())
    }
}
