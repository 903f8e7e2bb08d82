use super::*;

const CLIENTS: &[(&str, &str, &str)] = &[
    ("nodes", "*", "submit read"),
    ("watcher", "*", "read"),
    ("writer", "*", "submit"),
    ("operator", "*", "submit read operate"),
    ("acme", "acme", "submit read"),
    ("acme-operator", "acme", "submit read operate"),
];

fn bearer(name: &str) -> String {
    format!("Bearer {name}")
}

impl Desk {
    async fn as_client(&self, name: &str, tenant: &str, method: &str, path: &str, body: &str) -> Answer {
        let token = bearer(name);
        self.call(method, path, &[("authorization", &token), ("egressd-tenant", tenant)], body).await
    }
}

#[tokio::test]
async fn what_is_not_there_is_a_problem_too() {
    let desk = Desk::new();
    for path in ["/nope", "/v1", "/v1/", "/v1/sends/", "/v2/sends", "/v1/sends/x/y", "/metrics", "/inspector/nope.js"] {
        desk.get(path).await.problem(404, "not_found");
    }
    for (method, path, allow) in [
        ("PUT", "/v1/sends", "GET,HEAD,POST"),
        ("DELETE", "/v1/sends", "GET,HEAD,POST"),
        ("OPTIONS", "/v1/sends", "GET,HEAD,POST"),
        ("TRACE", "/v1/sends", "GET,HEAD,POST"),
        ("GET", "/v1/explain", "POST"),
        ("POST", "/v1/tail", "GET,HEAD"),
        ("GET", "/v1/executions/e/finish", "POST"),
        ("GET", "/v1/suspensions/x", "DELETE"),
        ("POST", "/openapi.json", "GET,HEAD"),
    ] {
        let answer = desk.call(method, path, &[], "").await;
        answer.problem(405, "method_not_allowed");
        assert_eq!(answer.header("allow"), allow, "{method} {path}");
    }
}

#[tokio::test]
async fn every_answer_tells_browsers_not_to_guess_or_keep() {
    let desk = Desk::new();
    for path in ["/v1/sends", "/v1/sends/x", "/nope", "/v1/tenants"] {
        let answer = desk.get(path).await;
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
    }
}

#[tokio::test]
async fn a_request_has_one_host() {
    for desk in [Desk::new(), Desk::with(&clients(CLIENTS))] {
        let token = bearer("nodes");
        let ask = async |path: &str, version: http::Version, hosts: &[&str]| {
            let mut request = Request::builder().uri(path).version(version).header("authorization", &token);
            request = request.header("egressd-tenant", "acme");
            for host in hosts {
                request = request.header("host", *host);
            }
            desk.request(request.body(Body::empty()).expect("a request")).await
        };
        for path in ["/", "/v1/sends", "/openapi.json", "/public-ips.txt", "/nope"] {
            for hosts in
                [&["localhost", "localhost"][..], &["localhost", "example.com"], &[], &["local host"], &["a/b"]]
            {
                ask(path, http::Version::HTTP_11, hosts).await.problem(400, "shape");
            }
        }
        assert_eq!(ask("/v1/sends", http::Version::HTTP_11, &["localhost"]).await.status, 200);
        // HTTP/2 has an authority in its place, HTTP/1.0 may leave it out.
        assert_eq!(ask("http://localhost/v1/sends", http::Version::HTTP_2, &[]).await.status, 200);
        ask("http://localhost/v1/sends", http::Version::HTTP_2, &["localhost", "localhost"])
            .await
            .problem(400, "shape");
        let old = ask("/v1/sends", http::Version::HTTP_10, &[]).await.status;
        assert!(old == 200 || old == 421, "{old}");
    }
}

#[tokio::test]
async fn without_clients_only_a_loopback_host_is_answered() {
    let desk = Desk::new();
    for (host, status) in [
        ("localhost", 200),
        ("localhost:8700", 200),
        ("LOCALHOST", 200),
        ("localhost.", 200),
        ("a.localhost", 200),
        ("127.0.0.1:8700", 200),
        ("127.9.9.9", 200),
        ("[::1]:8700", 200),
        ("[::ffff:127.0.0.1]", 200),
        ("example.com", 421),
        ("127.0.0.1.example.com", 421),
        ("localhost.example.com", 421),
        ("10.0.0.1", 421),
        ("[::2]", 421),
        ("evil@localhost", 421),
        ("localhost@evil", 421),
        ("not a host", 400),
        ("0.0.0.0", 421),
        ("2130706433", 421),
    ] {
        let answer = desk.call("GET", "/v1/sends", &[("host", host)], "").await;
        assert_eq!(answer.status.as_u16(), status, "{host}");
        if status == 421 {
            answer.problem(421, "forbidden");
        }
    }
    let no_host = Request::builder().uri("/v1/sends").version(http::Version::HTTP_10);
    desk.request(no_host.body(Body::empty()).expect("a request")).await.problem(421, "forbidden");
    // Open paths are no exception: the page would be the attacker's to read.
    desk.call("GET", "/openapi.json", &[("host", "example.com")], "").await.problem(421, "forbidden");
    // With clients the token protects, and any name may lead here.
    let desk = Desk::with(&clients(CLIENTS));
    desk.call("GET", "/openapi.json", &[("host", "egress.corp.example")], "").await.ok(200);
}

#[tokio::test]
async fn a_page_of_another_origin_is_refused() {
    let desk = Desk::new();
    for (origin, status) in [
        ("http://localhost:8700", 202),
        ("http://LOCALHOST:8700", 202),
        ("http://localhost", 403),
        ("http://localhost:8701", 403),
        ("http://127.0.0.1:8700", 403),
        ("https://example.com", 403),
        ("null", 403),
        ("", 202),
        ("localhost:8700", 403),
        ("http://x@localhost:8700", 403),
        ("file://localhost:8700", 403),
    ] {
        let answer = desk.call("POST", "/v1/sends", &[("origin", origin)], SEND).await;
        assert_eq!(answer.status.as_u16(), status, "{origin}");
        if status == 403 {
            answer.problem(403, "forbidden");
        }
    }
    desk.call("GET", "/v1/sends", &[("origin", "https://example.com")], "").await.problem(403, "forbidden");
}

#[tokio::test]
async fn a_frame_shows_the_page_on_those_pages_alone_that_are_named() {
    let frame = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")];
    let embed = "embed = [\"https://flows.example.net\", \"http://localhost:5173/\"]\n";
    let desk = Desk::with(&format!("[api]\n{embed}{}", clients(CLIENTS)));
    let page = desk.call("GET", "/", &frame, "").await;
    assert_eq!(page.status, 200);
    let policy = page.headers["content-security-policy"].to_str().expect("text").to_owned();
    assert!(policy.ends_with("; frame-ancestors https://flows.example.net http://localhost:5173"), "{policy}");
    assert!(!page.headers.contains_key("x-frame-options"));
    // The page alone: nothing that tells anything by itself.
    for path in ["/openapi.json", "/v1/sends", "/public-ips.txt"] {
        desk.call("GET", path, &frame, "").await.problem(403, "forbidden");
    }
    let page = Desk::new().get("/").await;
    assert!(
        page.headers["content-security-policy"].to_str().is_ok_and(|policy| policy.ends_with("frame-ancestors 'none'"))
    );
    assert_eq!(page.headers["x-frame-options"], "DENY");
}

#[tokio::test]
async fn a_page_of_another_site_is_refused_without_an_origin_too() {
    let link = &[("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
    let frame = &[("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")];
    let image = &[("sec-fetch-mode", "no-cors"), ("sec-fetch-dest", "image")];
    for desk in [Desk::new(), Desk::with(&clients(CLIENTS))] {
        let id = "0198aaaa-0000-7000-8000-000000000000";
        for (method, path, site, how, allowed) in [
            ("GET", "/", "same-origin", image, true),
            ("GET", "/", "none", link, true),
            ("GET", "/", "cross-site", link, true),
            ("GET", "/", "cross-site", frame, false),
            ("GET", "/", "cross-site", image, false),
            ("GET", "/openapi.json", "cross-site", link, false),
            ("GET", "/openapi.json", "same-site", image, false),
            ("GET", "/openapi.json", "none", link, true),
            ("GET", "/v1/tail", "cross-site", image, false),
            ("GET", &format!("/v1/sends/{id}?wait=30"), "Cross-Site", image, false),
            ("GET", "/v1/sends", "anything", image, false),
            ("POST", "/v1/executions/e/finish", "cross-site", image, false),
            ("POST", "/", "cross-site", link, false),
        ] {
            let mut headers = vec![("sec-fetch-site", site)];
            headers.extend(how);
            let answer = desk.call(method, path, &headers, "").await;
            if allowed {
                assert_eq!(answer.status, 200, "{method} {path} {site} {how:?}");
            } else {
                answer.problem(403, "forbidden");
            }
        }
    }
}

#[tokio::test]
async fn a_body_is_json_or_refused() {
    let desk = Desk::new();
    for (content_type, accepted) in [
        ("application/json", true),
        ("Application/JSON", true),
        ("application/json; charset=utf-8", true),
        ("application/json;charset=\"UTF-8\"", true),
        ("application/json; charset=latin1", false),
        ("text/plain", false),
        ("application/x-www-form-urlencoded", false),
        ("multipart/form-data; boundary=x", false),
        ("application/jsonp", false),
        ("", false),
    ] {
        let answer = desk.call("POST", "/v1/sends", &[("content-type", content_type)], SEND).await;
        if accepted {
            answer.ok(202);
        } else {
            answer.problem(415, "unsupported_type");
        }
    }
    let gzip = desk.call("POST", "/v1/sends", &[("content-encoding", "gzip")], SEND).await;
    gzip.problem(415, "unsupported_type");
    desk.call("POST", "/v1/sends", &[("content-type", "text/plain")], "").await.problem(400, "shape");
    for path in ["/v1/explain", "/v1/suspensions", "/v1/executions/e/finish", "/v1/executions/e/discard"] {
        let answer = desk.call("POST", path, &[("content-type", "text/plain")], "{}").await;
        answer.problem(415, "unsupported_type");
    }
    let path = "/v1/suspensions/0198aaaa-0000-7000-8000-000000000000";
    desk.call("DELETE", path, &[("content-type", "text/plain")], "{}").await.problem(415, "unsupported_type");
    desk.call("DELETE", path, &[], "").await.problem(404, "not_found");
}

#[tokio::test]
async fn a_call_over_the_limit_is_refused_while_it_arrives() {
    let desk = Desk::with("[limits]\napi_request = \"4KiB\"\nrequest_body = \"1KiB\"\n");
    let large = format!(r#"{{"method":"POST","url":"https://example.com/","data":"{}"}}"#, "x".repeat(5000));
    desk.post("/v1/sends", &large).await.problem(413, "too_large");
    // Without a declared length: chunk by chunk.
    let chunks: Vec<Result<Bytes, std::convert::Infallible>> = vec![Ok(Bytes::from(" ".repeat(1500))); 1000];
    let mut streamed = request("POST", "/v1/sends", &[("content-type", "application/json")], "");
    *streamed.body_mut() = Body::from_stream(futures_util::stream::iter(chunks));
    desk.request(streamed).await.problem(413, "too_large");
    // Declared too large: not read at all.
    let mut declared =
        request("POST", "/v1/sends", &[("content-type", "application/json"), ("content-length", "5000")], "");
    *declared.body_mut() =
        Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::convert::Infallible>>());
    desk.request(declared).await.problem(413, "too_large");
    // In pieces and within the limit.
    let pieces: Vec<Result<Bytes, std::convert::Infallible>> =
        SEND.as_bytes().chunks(7).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let mut streamed = request("POST", "/v1/sends", &[("content-type", "application/json")], "");
    *streamed.body_mut() = Body::from_stream(futures_util::stream::iter(pieces));
    desk.request(streamed).await.ok(202);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_arrive_is_given_up() {
    let desk = Desk::new();
    let mut silent = request("POST", "/v1/sends", &[("content-type", "application/json")], "");
    *silent.body_mut() = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::convert::Infallible>>());
    desk.request(silent).await.problem(408, "shape");
}

#[tokio::test]
async fn a_token_says_who_calls() {
    let desk = Desk::with(&clients(CLIENTS));
    for header in ["", "nodes", "Basic nodes", "Bearer", "Bearer ", "Bearer nope", "Bearer nodes2", "bearer\tnodes"] {
        let answer = desk.call("GET", "/v1/sends", &[("authorization", header), ("egressd-tenant", "a")], "").await;
        answer.problem(401, "unauthorized");
        assert_eq!(answer.header("www-authenticate"), "Bearer", "{header}");
    }
    for header in ["Bearer nodes", "bearer nodes", "BEARER  nodes "] {
        desk.call("GET", "/v1/sends", &[("authorization", header), ("egressd-tenant", "a")], "").await.ok(200);
    }
    // What anyone may read.
    for path in ["/openapi.json"] {
        assert_eq!(desk.get(path).await.status, 200, "{path}");
    }
    for path in [
        "/v1/sends",
        "/v1/executions",
        "/v1/stats",
        "/v1/tail",
        "/v1/tenants",
        "/v1/suspensions",
        "/v1/sends/x",
        "/v1/sends/x/har",
    ] {
        desk.get(path).await.problem(401, "unauthorized");
    }
}

#[tokio::test]
async fn scopes_say_what_a_caller_may_do() {
    let desk = Desk::with(&clients(CLIENTS));
    let id = "0198aaaa-0000-7000-8000-000000000000";
    for (method, path, body, needs) in [
        ("POST", "/v1/sends".to_owned(), SEND, "submit"),
        ("POST", "/v1/executions/e/sends".to_owned(), SEND, "submit"),
        ("POST", "/v1/executions/e/finish".to_owned(), "", "submit"),
        ("POST", "/v1/executions/f/discard".to_owned(), "", "submit"),
        ("GET", "/v1/executions".to_owned(), "", "read"),
        ("GET", "/v1/stats".to_owned(), "", "read"),
        ("GET", "/v1/executions/e".to_owned(), "", "read"),
        ("GET", "/v1/sends".to_owned(), "", "read"),
        ("GET", format!("/v1/sends/{id}"), "", "read"),
        ("GET", format!("/v1/sends/{id}/har"), "", "read"),
        ("HEAD", "/v1/tail".to_owned(), "", "read"),
        ("POST", format!("/v1/sends/{id}/resend"), "", "submit read"),
        ("GET", "/v1/suspensions".to_owned(), "", "operate"),
        ("POST", "/v1/suspensions".to_owned(), r#"{"host":"x.example.com","reason":"r"}"#, "operate"),
        ("DELETE", format!("/v1/suspensions/{id}"), "", "operate"),
        ("GET", "/v1/tenants".to_owned(), "", "operate"),
        ("GET", "/v1/sources".to_owned(), "", "operate"),
        ("GET", "/v1/nodes".to_owned(), "", "operate"),
    ] {
        for (name, scopes) in [("watcher", "read"), ("writer", "submit"), ("nodes", "submit read")] {
            let answer = desk.as_client(name, "a", method, &path, body).await;
            let allowed = needs.split(' ').all(|need| scopes.split(' ').any(|scope| scope == need));
            assert_eq!(answer.status != 403, allowed, "{name} {method} {path}: {}", answer.status);
        }
    }
}

#[tokio::test]
async fn a_client_of_one_tenant_sees_only_that_one() {
    let desk = Desk::with(&clients(CLIENTS));
    let own = Desk::accepted(&desk.as_client("acme", "", "POST", "/v1/sends", SEND).await);
    let foreign = Desk::accepted(&desk.as_client("nodes", "other", "POST", "/v1/sends", SEND).await);
    for (name, tenant, id, status) in [
        ("acme", "", own, 200),
        ("acme", "acme", own, 200),
        ("acme", "other", own, 403),
        ("acme", "*", own, 403),
        ("acme", "", foreign, 404),
        ("nodes", "acme", own, 200),
        ("nodes", "other", own, 404),
        ("nodes", "", own, 400),
        ("nodes", "*", own, 403),
        ("operator", "*", own, 200),
        ("operator", "*", foreign, 200),
        ("operator", "other", own, 404),
        ("acme-operator", "*", foreign, 403),
    ] {
        for path in [format!("/v1/sends/{id}"), format!("/v1/sends/{id}/har")] {
            let answer = desk.as_client(name, tenant, "GET", &path, "").await;
            assert_eq!(answer.status.as_u16(), status, "{name} {tenant:?} {path}: {:?}", answer.body);
        }
    }
    let ids = |answer: Answer| -> Vec<String> {
        let sends = answer.ok(200)["sends"].clone();
        sends.as_array().expect("an array").iter().map(|send| send["id"].as_str().expect("an id").to_owned()).collect()
    };
    assert_eq!(ids(desk.as_client("acme", "", "GET", "/v1/sends", "").await), [own.to_string()]);
    assert_eq!(ids(desk.as_client("nodes", "other", "GET", "/v1/sends", "").await), [foreign.to_string()]);
    let all = ids(desk.as_client("operator", "*", "GET", "/v1/sends", "").await);
    assert_eq!(all, [foreign.to_string(), own.to_string()]);
    let filtered = desk.as_client("operator", "*", "GET", "/v1/sends?tenant=acme", "").await;
    assert_eq!(ids(filtered), [own.to_string()]);
    let named = desk.as_client("operator", "acme", "GET", "/v1/sends?tenant=acme", "").await;
    named.problem(400, "shape");
    // Submitting is for one tenant.
    desk.as_client("operator", "*", "POST", "/v1/sends", SEND).await.problem(400, "shape");
    desk.as_client("acme", "other", "POST", "/v1/sends", SEND).await.problem(403, "forbidden");
    desk.as_client("nodes", "", "POST", "/v1/sends", SEND).await.problem(400, "shape");
    // Another tenant's execution is another execution.
    desk.as_client("acme", "", "POST", "/v1/executions/e/sends", SEND).await.ok(202);
    desk.as_client("nodes", "other", "GET", "/v1/executions/e", "").await.problem(404, "not_found");
    let closed = desk.as_client("nodes", "other", "POST", "/v1/executions/e/finish", "").await;
    assert_eq!(closed.ok(200)["released"], 0);
    assert_eq!(desk.as_client("acme", "", "GET", "/v1/executions/e", "").await.ok(200)["state"], "open");
    desk.as_client("acme", "", "POST", &format!("/v1/sends/{foreign}/resend"), "").await.problem(404, "not_found");
}

#[tokio::test]
async fn executions_and_statistics_are_those_of_the_tenants_that_a_caller_may_see() {
    let desk = Desk::with(&clients(CLIENTS));
    for tenant in ["acme", "other"] {
        let body = format!(
            r#"{{"method":"GET","url":"https://{tenant}.example.com/","context":{{"workflow":"w","execution":"run"}}}}"#
        );
        let id = Desk::accepted(&desk.as_client("nodes", tenant, "POST", "/v1/sends", &body).await);
        desk.answer(tenant, id, 200).await;
    }
    let names = |list: &Value, key: &str| -> Vec<String> {
        let mut names: Vec<String> =
            list.as_array().expect("a list").iter().map(|one| one[key].as_str().expect("a name").to_owned()).collect();
        names.sort_unstable();
        names
    };
    for (client, tenant, more, seen) in [
        ("acme", "", "", Ok(&["acme"][..])),
        ("acme", "acme", "", Ok(&["acme"])),
        ("acme", "other", "", Err(403)),
        ("acme", "*", "", Err(403)),
        ("acme", "", "&tenant=other", Err(400)),
        ("acme-operator", "*", "", Err(403)),
        ("nodes", "other", "", Ok(&["other"])),
        ("nodes", "nobody", "", Ok(&[])),
        ("nodes", "", "", Err(400)),
        ("nodes", "*", "", Err(403)),
        ("nodes", "acme", "&tenant=other", Err(400)),
        ("watcher", "acme", "", Ok(&["acme"])),
        ("writer", "acme", "", Err(403)),
        ("operator", "*", "", Ok(&["acme", "other"])),
        ("operator", "*", "&tenant=other", Ok(&["other"])),
        ("nobody", "acme", "", Err(401)),
    ] {
        let told = format!("{client} of {tenant:?} with {more:?}");
        let hosts: Vec<String> = seen.iter().copied().flatten().map(|name| format!("{name}.example.com")).collect();
        let paths = ["/v1/executions?workflow=w", "/v1/stats?by=tenant", "/v1/stats?by=host", "/v1/stats?by=source"];
        for path in paths {
            let answer = desk.as_client(client, tenant, "GET", &format!("{path}{more}"), "").await;
            let seen = match seen {
                Ok(seen) => seen,
                Err(status) => {
                    assert_eq!(answer.status.as_u16(), status, "{told}, {path}: {:?}", answer.body);
                    continue;
                }
            };
            let answer = answer.ok(200);
            match path {
                "/v1/executions?workflow=w" => assert_eq!(names(&answer["executions"], "tenant"), seen, "{told}"),
                "/v1/stats?by=tenant" => assert_eq!(names(&answer["groups"], "name"), seen, "{told}"),
                "/v1/stats?by=host" => assert_eq!(names(&answer["groups"], "name"), hosts, "{told}"),
                _ => {}
            }
            if path.starts_with("/v1/stats") {
                assert_eq!(answer["total"]["count"], seen.len(), "{told}, {path}");
            }
        }
    }
}

#[tokio::test]
async fn a_tenants_name_is_bounded() {
    let desk = Desk::new();
    let longest = "t".repeat(limits::TENANT_CHARS_MAX);
    for (tenant, status) in
        [(longest.as_str(), 200), (&format!("{longest}t"), 400), (" ", 400), ("a b", 200), ("ümlaut", 400)]
    {
        let answer = desk.call("GET", "/v1/sends", &[("egressd-tenant", tenant)], "").await;
        assert_eq!(answer.status.as_u16(), status, "{tenant}");
    }
    let twice = desk.call("GET", "/v1/sends", &[("egressd-tenant", "a"), ("egressd-tenant", "b")], "").await;
    twice.problem(400, "shape");
}

#[tokio::test]
async fn without_clients_everyone_here_may_do_everything() {
    let desk = Desk::new();
    let id = Desk::accepted(&desk.post("/v1/sends", SEND).await);
    assert_eq!(desk.get(&format!("/v1/sends/{id}")).await.ok(200)["context"]["tenant"], "default");
    let all = desk.call("GET", "/v1/sends?tenant=default", &[("egressd-tenant", "*")], "").await;
    assert_eq!(all.ok(200)["sends"].as_array().map(Vec::len), Some(1));
    desk.get("/v1/tenants").await.ok(200);
    desk.get("/v1/suspensions").await.ok(200);
}

#[tokio::test]
async fn what_a_tenant_may_not_know_is_left_out() {
    let desk = Desk::with(&clients(CLIENTS));
    let id = Desk::accepted(&desk.as_client("acme", "", "POST", "/v1/sends", SEND).await);
    desk.answer("acme", id, 200).await;
    let path = format!("/v1/sends/{id}");
    let tenant = desk.as_client("acme", "", "GET", &path, "").await.ok(200);
    assert_eq!(tenant["connection"]["source_ip"], "198.51.100.10");
    assert_eq!(tenant["connection"]["public_ip"], "198.51.100.10");
    assert_eq!(
        tenant["connection"]["resolved"],
        serde_json::json!([{"ip": "127.0.0.1", "verdict": "allowed"}, {"ip": null, "verdict": "policy_address"}])
    );
    let operator = desk.as_client("acme-operator", "", "GET", &path, "").await.ok(200);
    assert_eq!(operator["connection"]["source_ip"], "127.0.0.11");
    assert_eq!(operator["connection"]["resolved"][1]["ip"], "127.0.0.2");
    for (client, ip, found) in
        [("acme-operator", "127.0.0.11", 1), ("acme", "127.0.0.11", 0), ("acme", "127.0.0.12", 0)]
    {
        let list = desk.as_client(client, "", "GET", &format!("/v1/sends?source_ip={ip}"), "").await.ok(200);
        assert_eq!(list["sends"].as_array().map(Vec::len), Some(found), "{client} {ip}: {list}");
    }
    for answer in [
        desk.as_client("acme", "", "GET", "/v1/sends", "").await,
        desk.as_client("acme", "", "GET", &format!("{path}/har"), "").await,
    ] {
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(!text.contains("127.0.0.2") && !text.contains("127.0.0.11"), "{text}");
    }
}

#[tokio::test]
async fn a_message_names_addresses_near_us_to_operators_alone() {
    let desk = Desk::with(&clients(CLIENTS));
    // A guess that stands in the send is no knowledge.
    let guess = SEND.replace("example.com/", "example.com/?127.0.0.53");
    let id = Desk::accepted(&desk.as_client("acme", "", "POST", "/v1/sends", &guess).await);
    let said = "127.0.0.53:53 did not answer, 8.8.8.8:53 answered SERVFAIL";
    let failure = Failure::recorded(Code::DnsFailed, Some(Phase::Dns), Processed::No, said);
    desk.end("acme", Finished { ended: Ended::because(failure), ..finished(id, 200) }).await;
    let path = format!("/v1/sends/{id}");
    let operator = desk.as_client("acme-operator", "", "GET", &path, "").await.ok(200);
    assert_eq!(operator["error"]["message"], said);
    let tenant = desk.as_client("acme", "", "GET", &path, "").await.ok(200);
    assert_eq!(tenant["error"]["message"], "[an internal address] did not answer, 8.8.8.8:53 answered SERVFAIL");
    for path in ["/v1/sends", &format!("{path}/har")] {
        let answer = desk.as_client("acme", "", "GET", path, "").await;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(text.contains("[an internal address] did not answer") && !text.contains("127.0.0.53:53"), "{text}");
    }
}
