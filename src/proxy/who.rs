//! Who asks, and for which tenant: `Proxy-Authorization` (RFC 9110 section 11.7.2), which no destination ever sees.
//!
//! `Basic` with the tenant as user and the token as password, which is what every client makes of
//! `http://TENANT:TOKEN@HOST:PORT`; or `Bearer` with the token, and the tenant in `Egressd-Tenant`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::PROXY_AUTHORIZATION;

use super::refusal::Refusal;
use crate::api::access::{Caller, DEFAULT_TENANT, Need, named_tenant, tenant_text};
use crate::api::problem::{Problem, ProblemCode};
use crate::config::Config;
use crate::send::TenantId;

/// What a request says of its caller.
struct Said {
    tenant: Option<String>,
    token: Vec<u8>,
}

/// A caller who may open tunnels, and the tenant that this one is for.
pub fn admit(headers: &HeaderMap, config: &Config) -> Result<(Caller, TenantId), Refusal> {
    let said = said(headers)?;
    let in_header = named_tenant(headers)?;
    let in_user = said.as_ref().and_then(|said| said.tenant.as_deref());
    if let (Some(user), Some(header)) = (in_user, in_header)
        && user != header
    {
        return Err(Problem::shape("Proxy-Authorization and Egressd-Tenant name two tenants: name one").into());
    }
    let named = in_user.or(in_header);
    if config.api.clients.is_empty() {
        let tenant = TenantId::new(named.unwrap_or(DEFAULT_TENANT));
        return Ok((Caller::of_this_host(), tenant));
    }
    let said = said
        .as_ref()
        .ok_or_else(|| Refusal::unauthenticated("send a token: Proxy-Authorization: Basic TENANT:TOKEN"))?;
    let caller = Caller::with_token(&said.token, config, Need::Proxy).map_err(|problem| match problem.code() {
        ProblemCode::Unauthorized => Refusal::unauthenticated("the token is not one of a configured [[api.client]]"),
        _ => problem.into(),
    })?;
    let tenant = caller.tenant_named(named)?;
    Ok((caller, tenant))
}

fn said(headers: &HeaderMap) -> Result<Option<Said>, Refusal> {
    let mut values = headers.get_all(PROXY_AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::shape("Proxy-Authorization may be given once").into());
    }
    let unreadable = || Refusal::unauthenticated("Proxy-Authorization must read: Basic TENANT:TOKEN, or Bearer TOKEN");
    let value = value.as_bytes();
    let end = value.iter().position(|&byte| byte == b' ').ok_or_else(unreadable)?;
    let (scheme, rest) = (&value[..end], value[end..].trim_ascii());
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Ok(Some(Said { tenant: None, token: rest.to_owned() }));
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return Err(unreadable());
    }
    let pair = STANDARD.decode(rest).map_err(|_| unreadable())?;
    let colon = pair.iter().position(|&byte| byte == b':').ok_or_else(unreadable)?;
    let (user, token) = (&pair[..colon], pair[colon + 1..].to_owned());
    let tenant = if user.is_empty() { None } else { Some(tenant_text(user)?.to_owned()) };
    Ok(Some(Said { tenant, token }))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::config::{ApiClient, Scopes};
    use crate::redact::sha256;

    fn config(clients: &[(&str, Option<&str>, bool)]) -> Config {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("public-ips.txt"), "127.0.0.2\n").unwrap();
        let text = "[dns]\nservers = [\"127.0.0.1\"]\n[[egress.source]]\npublic = \"127.0.0.2\"\n[proxy]\n";
        let mut config = Config::from_text(text, &directory.path().join("egressd.toml"), crate::clock::wall()).unwrap();
        config.api.clients = clients
            .iter()
            .map(|(token, tenant, proxy)| ApiClient {
                name: format!("client {token}"),
                token_sha256: sha256(token.as_bytes()),
                tenant: tenant.map(TenantId::new),
                scopes: Scopes { proxy: *proxy, read: true, ..Scopes::default() },
            })
            .collect();
        config
    }

    fn basic(pair: &str) -> String {
        format!("Basic {}", STANDARD.encode(pair))
    }

    #[test]
    fn a_token_with_the_scope_opens_tunnels_for_its_tenant() {
        let config = config(&[("any", None, true), ("acmes", Some("acme"), true), ("reader", Some("acme"), false)]);
        let (any, acmes) = (basic("acme:any"), basic("acme:acmes"));
        for (authorization, tenant, wanted) in [
            (Some(any.clone()), None, Ok("acme")),
            (Some(acmes.clone()), None, Ok("acme")),
            (Some(basic(":acmes")), None, Ok("acme")),
            (Some("bearer any".to_owned()), Some("beta"), Ok("beta")),
            (Some("BEARER acmes".to_owned()), None, Ok("acme")),
            (Some(basic("acme:any").replace("Basic ", "bAsIc  ")), Some("acme"), Ok("acme")),
            (None, None, Err(407)),
            (None, Some("acme"), Err(407)),
            (Some(basic("acme:wrong")), None, Err(407)),
            (Some(basic("acme:")), None, Err(407)),
            (Some(basic("acme")), None, Err(407)),
            (Some("Basic !!!".to_owned()), None, Err(407)),
            (Some("Basic".to_owned()), None, Err(407)),
            (Some("Digest username=acme".to_owned()), None, Err(407)),
            (Some("any".to_owned()), None, Err(407)),
            (Some(basic("beta:acmes")), None, Err(403)),
            (Some("Bearer acmes".to_owned()), Some("beta"), Err(403)),
            (Some(basic("acme:reader")), None, Err(403)),
            (Some("Bearer any".to_owned()), None, Err(400)),
            (Some("Bearer any".to_owned()), Some("*"), Err(400)),
            (Some(basic("*:any")), None, Err(400)),
            (Some(any), Some("beta"), Err(400)),
            (Some(basic("a\u{7}b:any")), None, Err(400)),
        ] {
            let mut headers = HeaderMap::new();
            let value = |text: &str| HeaderValue::from_str(text).unwrap();
            if let Some(authorization) = &authorization {
                headers.insert(PROXY_AUTHORIZATION, value(authorization));
            }
            if let Some(tenant) = tenant {
                headers.insert("egressd-tenant", value(tenant));
            }
            let found = admit(&headers, &config).map(|(_, tenant)| tenant).map_err(|refusal| refusal.status().as_u16());
            assert_eq!(found, wanted.map(TenantId::new), "{authorization:?} {tenant:?}");
        }
        let mut twice = HeaderMap::new();
        for _ in 0..2 {
            twice.append(PROXY_AUTHORIZATION, HeaderValue::from_str(&acmes).unwrap());
        }
        assert_eq!(admit(&twice, &config).unwrap_err().status().as_u16(), 400);
    }

    #[test]
    fn without_clients_whoever_is_on_this_host_names_a_tenant_or_none() {
        let config = config(&[]);
        for (authorization, wanted) in
            [(None, "default"), (Some(basic("acme:whatever")), "acme"), (Some("Bearer x".to_owned()), "default")]
        {
            let mut headers = HeaderMap::new();
            if let Some(authorization) = &authorization {
                headers.insert(PROXY_AUTHORIZATION, HeaderValue::from_str(authorization).unwrap());
            }
            assert_eq!(admit(&headers, &config).unwrap().1.as_str(), wanted, "{authorization:?}");
        }
    }
}
