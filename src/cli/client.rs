//! The commands' way to an appliance's API. Not how sends are made: this is an operator talking to their own node.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::Value;

/// Where the API is where nobody says.
const DEFAULT_API: &str = "http://127.0.0.1:8700";
/// The configuration that a host has as a rule.
pub const DEFAULT_CONFIG: &str = "/etc/egressd/egressd.toml";

/// Where the API is and who asks.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct ApiArgs {
    /// The API's address [env: EGRESSD_API] [default: http://127.0.0.1:8700]
    #[arg(long, value_name = "URL")]
    pub api: Option<String>,
    /// Bearer token; better kept in the environment or a file than in a command line
    #[arg(long, value_name = "TOKEN", env = "EGRESSD_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Read the bearer token from this file; it goes before `--token`
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The tenant to speak for, where the token is of a client of any tenant
    #[arg(long, value_name = "TENANT", env = "EGRESSD_TENANT")]
    pub tenant: Option<String>,
    /// Trust the CAs of this PEM file for the API's certificate, beside the public ones
    #[arg(long, value_name = "FILE")]
    pub api_ca: Option<PathBuf>,
    /// The certificate to show to an API that asks for one (`[api] tls client_ca`): PEM, with `--api-key`
    #[arg(long, value_name = "FILE", requires = "api_key")]
    pub api_cert: Option<PathBuf>,
    /// The private key of `--api-cert`: PEM
    #[arg(long, value_name = "FILE", requires = "api_cert")]
    pub api_key: Option<PathBuf>,
}

impl ApiArgs {
    /// As named on the command line or in the environment.
    fn named(&self) -> Option<String> {
        let environment = || std::env::var("EGRESSD_API").ok().filter(|url| !url.is_empty());
        self.api.clone().or_else(environment)
    }

    fn token(&self) -> anyhow::Result<Option<String>> {
        let Some(path) = &self.token_file else { return Ok(self.token.clone()) };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("--token-file {} cannot be read as text", path.display()))?;
        match text.trim() {
            "" => bail!("--token-file {} is empty: it holds the token and nothing else", path.display()),
            token => Ok(Some(token.to_owned())),
        }
    }
}

/// Who is asked: a configuration, or the appliance that runs.
#[derive(clap::Args, Clone, Debug)]
pub struct Whom {
    /// Go by this configuration [default: /etc/egressd/egressd.toml where there is one, else the API]
    #[arg(long, value_name = "FILE", conflicts_with = "api")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub api: ApiArgs,
}

impl Whom {
    /// The file to go by; `None`: the API is asked. What was named goes first, the command line before the environment.
    pub fn file(&self) -> Option<PathBuf> {
        let usual = || Some(PathBuf::from(DEFAULT_CONFIG)).filter(|path| path.exists());
        match (&self.config, self.api.named()) {
            (Some(file), _) => Some(file.clone()),
            (None, Some(_)) => None,
            (None, None) => usual(),
        }
    }
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
        let base = args.named().unwrap_or_else(|| DEFAULT_API.to_owned()).trim_end_matches('/').to_owned();
        if !base.starts_with("http://") && !base.starts_with("https://") {
            bail!("--api {base} is not a URL: write http://HOST:PORT or https://HOST:PORT");
        }
        let tls = rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots(args)?);
        let tls = match args.api_cert.as_deref().zip(args.api_key.as_deref()) {
            Some((cert, key)) => {
                let (chain, key) = own_certificate(cert, key)?;
                tls.with_client_auth_cert(chain, key).context("--api-cert and --api-key are no pair")?
            }
            None => tls.with_no_client_auth(),
        };
        let connector =
            hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        let mut headers = HeaderMap::new();
        if let Some(token) = args.token()? {
            let value = format!("Bearer {token}").parse().context("the token holds characters that a header cannot")?;
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
        let response = response.map_err(|error| unanswered(&self.base, error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.into_body().collect().await.context("the API's answer broke off")?.to_bytes();
        let problem = serde_json::from_slice(&body)
            .unwrap_or_else(|_| serde_json::json!({ "detail": String::from_utf8_lossy(&body).trim() }));
        Err(Refused { status, problem }.into())
    }

    /// One call whose answer is text.
    pub async fn text(&self, method: Method, path: &str) -> anyhow::Result<String> {
        let response = self.call(method, path, None, &[]).await?;
        let bytes = response.into_body().collect().await.context("the API's answer broke off")?.to_bytes();
        String::from_utf8(bytes.into()).context("the API's answer is not text: is this an egressd?")
    }

    /// One call whose answer is JSON.
    pub async fn json(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> anyhow::Result<Value> {
        let response = self.call(method, path, body, &[]).await?;
        let bytes = response.into_body().collect().await.context("the API's answer broke off")?.to_bytes();
        serde_json::from_slice(&bytes).context("the API's answer is not JSON: is this an egressd?")
    }
}

/// Why there is no answer, in words that say what to try.
fn unanswered(base: &str, error: hyper_util::client::legacy::Error) -> anyhow::Error {
    let secure = base.starts_with("https://");
    let mut causes: Vec<&(dyn std::error::Error + 'static)> = vec![&error];
    while let Some(cause) = causes.last().and_then(|cause| cause.source()) {
        causes.push(cause);
    }
    let speaks_no_tls = causes.iter().any(|cause| {
        // As often as somebody wrapped it, of which `source` tells nothing.
        let mut cause = *cause;
        while let Some(inner) = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            cause = inner;
        }
        matches!(cause.downcast_ref(), Some(rustls::Error::InvalidMessage(_)))
    });
    let speaks_no_http =
        causes.iter().any(|cause| cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse));
    let advice = match error.is_connect() {
        _ if secure && speaks_no_tls => format!("what listens there speaks no TLS: try http{}", &base[5..]),
        _ if !secure && speaks_no_http => format!("what listens there speaks no plain HTTP: try https{}", &base[4..]),
        true => "is `egressd serve` running there?".to_owned(),
        false => "is that an egressd, and its `[api] listen`?".to_owned(),
    };
    anyhow!(error).context(format!("no answer from {base}: {advice}"))
}

fn own_certificate(cert: &Path, key: &Path) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.with_context(|| format!("--api-cert {} is not a PEM file with certificates", cert.display()))?;
    let key = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("--api-key {} is not a PEM file with a private key", key.display()))?;
    Ok((chain, key))
}

fn roots(args: &ApiArgs) -> anyhow::Result<rustls::RootCertStore> {
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
