//! The commands' way to an appliance's API. Not how sends are made: this is an operator talking to their own node.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// Where the API is and who asks.
#[derive(clap::Args, Clone, Debug)]
pub struct ApiArgs {
    /// The API's address
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8700", env = "EGRESSD_API")]
    pub api: String,
    /// Bearer token; better kept in the environment than in a command line
    #[arg(long, value_name = "TOKEN", env = "EGRESSD_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// The tenant to speak for, where the token is of a client of any tenant
    #[arg(long, value_name = "TENANT", env = "EGRESSD_TENANT")]
    pub tenant: Option<String>,
    /// Trust the CAs of this PEM file for the API's certificate, beside the public ones
    #[arg(long, value_name = "FILE")]
    pub api_ca: Option<PathBuf>,
}

pub struct ApiClient {
    base: String,
    headers: HeaderMap,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// An answer of the API that is not a success, in words: every problem it named, each with its hint.
#[derive(Debug)]
pub struct Refused {
    pub status: StatusCode,
    pub problem: Value,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let code = text(&self.problem, "code");
        write!(f, "the API answered {}", self.status.as_u16())?;
        if !code.is_empty() {
            write!(f, " ({code})")?;
        }
        let detail = text(&self.problem, "detail");
        let detail = if detail.is_empty() { text(&self.problem, "title") } else { detail };
        write!(f, ": {detail}")?;
        for problem in self.problem.get("errors").and_then(Value::as_array).into_iter().flatten() {
            let pointer = text(problem, "pointer");
            write!(f, "\n  {}: {}", if pointer.is_empty() { "the body" } else { &pointer }, text(problem, "detail"))?;
            let hint = text(problem, "hint");
            if !hint.is_empty() {
                write!(f, " ({hint})")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

impl ApiClient {
    pub fn new(args: &ApiArgs) -> anyhow::Result<Self> {
        let base = args.api.trim_end_matches('/').to_owned();
        if !base.starts_with("http://") && !base.starts_with("https://") {
            bail!("--api {base} is not a URL: write http://HOST:PORT or https://HOST:PORT");
        }
        let tls = rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots(args)?)
            .with_no_client_auth();
        let connector =
            hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        let mut headers = HeaderMap::new();
        if let Some(token) = &args.token {
            let value = format!("Bearer {token}").parse().context("--token holds characters that a header cannot")?;
            headers.insert(header::AUTHORIZATION, value);
        }
        if let Some(tenant) = &args.tenant {
            let value = tenant.parse().context("--tenant holds characters that a header cannot")?;
            headers.insert("egressd-tenant", value);
        }
        Ok(Self { base, headers, client: Client::builder(TokioExecutor::new()).build(connector) })
    }

    /// One call; the body of a success is left to be read, anything else is [`Refused`].
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<Response<Incoming>> {
        let url = format!("{}{path}", self.base);
        let mut request = Request::builder().method(method).uri(&url);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = Full::new(Bytes::from(body.unwrap_or_default()));
        let request = request.body(body).with_context(|| format!("{url} is not a URL"))?;
        let response = self.client.request(request).await;
        let response = response.with_context(|| format!("no answer from {url}: is `egressd serve` running there?"))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.into_body().collect().await.context("the API's answer broke off")?.to_bytes();
        let problem = serde_json::from_slice(&body)
            .unwrap_or_else(|_| serde_json::json!({ "detail": String::from_utf8_lossy(&body).trim() }));
        Err(Refused { status, problem }.into())
    }

    /// One call whose answer is JSON.
    pub async fn json(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> anyhow::Result<Value> {
        let response = self.call(method, path, body, &[]).await?;
        let bytes = response.into_body().collect().await.context("the API's answer broke off")?.to_bytes();
        serde_json::from_slice(&bytes).context("the API's answer is not JSON: is this an egressd?")
    }
}

fn roots(args: &ApiArgs) -> anyhow::Result<rustls::RootCertStore> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let mut roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(path) = &args.api_ca {
        let certificates = CertificateDer::pem_file_iter(path)
            .with_context(|| format!("--api-ca {} cannot be read", path.display()))?;
        for certificate in certificates {
            let certificate = certificate.with_context(|| format!("--api-ca {} is not PEM", path.display()))?;
            roots.add(certificate).with_context(|| format!("--api-ca {} holds no usable CA", path.display()))?;
        }
    }
    Ok(roots)
}
