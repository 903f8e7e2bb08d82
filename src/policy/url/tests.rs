use super::*;

#[test]
fn userinfo_is_hidden_wherever_a_parser_could_see_it() {
    for (raw, shown) in [
        ("https://user:pw@host/path", "https://***@host/path"),
        ("https://user:p/w@host/", "https://***@host/"),
        ("user:pw@host", "***@host"),
        ("http:user:pw@host", "http:***@host"),
        ("http:\\\\user:pw@host", "http:\\\\***@host"),
        ("https://user:pw%40host", "https://***%40host"),
        ("https://user:pw＠host", "https://***＠host"),
        ("ftp://a:b@c@d/", "ftp://***@d/"),
        (" https://user:pw@host", " https://***@host"),
        ("https://host/a b", "https://host/a b"),
        ("https://host/a%40b c", "https://host/a%40b c"),
        ("https://@host", "https://@host"),
        ("", ""),
    ] {
        assert_eq!(without_userinfo(raw, |_| "***".to_owned()), shown, "{raw}");
    }
}
