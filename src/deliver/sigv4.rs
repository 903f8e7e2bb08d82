//! AWS Signature Version 4 in a header, as S3 reads it ("Authenticating Requests: Using the Authorization Header" of its API
//! reference): the path is as it leaves, and the digest of the body is a signed header.
//!
//! The cryptography is the library's that there is. A crate for the rest would bring a dozen others, and most of these in a
//! second version; what it would do is held to the published examples here.

use aws_lc_rs::hmac;
use jiff::Timestamp;

use crate::redact::sha256;

/// What is signed.
pub struct Request<'a> {
    pub method: &'a str,
    /// Percent-encoded.
    pub path: &'a str,
    /// Its pairs sorted and percent-encoded; empty: none.
    pub query: &'a str,
    /// Names in lower case, in any order; values as they leave, without spaces at their ends or two in a row.
    pub headers: Vec<(&'a str, &'a str)>,
    /// SHA-256 of the body, in hexadecimal digits.
    pub payload: &'a str,
}

/// What `x-amz-date` says, which is to be among the signed headers.
pub fn date(at: Timestamp) -> String {
    at.strftime("%Y%m%dT%H%M%SZ").to_string()
}

impl Request<'_> {
    /// The value of `authorization`.
    pub fn authorization(mut self, key_id: &str, secret: &str, region: &str, at: Timestamp) -> String {
        self.headers.sort_unstable_by_key(|(name, _)| *name);
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let lines: String = self.headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let canonical = [self.method, self.path, self.query, lines.as_str(), names.as_str(), self.payload].join("\n");
        let dated = date(at);
        let day = &dated[..8];
        let scope = format!("{day}/{region}/s3/aws4_request");
        let digest = hexadecimal(&sha256(canonical.as_bytes()));
        let to_sign = format!("AWS4-HMAC-SHA256\n{dated}\n{scope}\n{digest}");
        let first = format!("AWS4{secret}").into_bytes();
        let key = [day, region, "s3", "aws4_request"].iter().fold(first, |key, part| keyed(&key, part));
        let signature = hexadecimal(&keyed(&key, &to_sign));
        format!("AWS4-HMAC-SHA256 Credential={key_id}/{scope}, SignedHeaders={names}, Signature={signature}")
    }
}

fn keyed(key: &[u8], text: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
}

pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The four examples of the S3 API reference, "Authenticating Requests: Using the Authorization Header".
    #[test]
    fn signatures_are_those_of_the_published_examples() {
        let at: Timestamp = "2013-05-24T00:00:00Z".parse().expect("a time");
        let empty = hexadecimal(&sha256(b""));
        let welcome = hexadecimal(&sha256(b"Welcome to Amazon S3."));
        assert_eq!(welcome, "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072");
        let put = [("date", "Fri, 24 May 2013 00:00:00 GMT"), ("x-amz-storage-class", "REDUCED_REDUNDANCY")];
        for (method, path, query, more, payload, names, signature) in [
            (
                "GET",
                "/test.txt",
                "",
                &[("range", "bytes=0-9")][..],
                &empty,
                "host;range;x-amz-content-sha256;x-amz-date",
                "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            ),
            (
                "PUT",
                "/test%24file.text",
                "",
                &put,
                &welcome,
                "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
                "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
            ),
            (
                "GET",
                "/",
                "lifecycle=",
                &[],
                &empty,
                "host;x-amz-content-sha256;x-amz-date",
                "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            ),
            (
                "GET",
                "/",
                "max-keys=2&prefix=J",
                &[],
                &empty,
                "host;x-amz-content-sha256;x-amz-date",
                "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            ),
        ] {
            let dated = date(at);
            let mut headers = vec![
                ("x-amz-date", dated.as_str()),
                ("x-amz-content-sha256", payload.as_str()),
                ("host", "examplebucket.s3.amazonaws.com"),
            ];
            headers.extend(more);
            let request = Request { method, path, query, headers, payload };
            let (id, secret) = ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
            assert_eq!(
                request.authorization(id, secret, "us-east-1", at),
                format!(
                    "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, \
                     SignedHeaders={names}, Signature={signature}"
                )
            );
        }
    }
}
