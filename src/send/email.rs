//! A message to the tenant's own address, as its author wants it: a subject, and a text, HTML or both.
//!
//! Nothing here names a recipient, a sender or a relay: these are the configuration's, and no send has a place for them.
//! What the author wrote is kept as one JSON object, which is stored, sealed, searched and redacted as bodies are.

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::policy::Destination;

/// The message, and what it is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Email {
    /// Of a [`Letter`].
    content: Bytes,
    relay: Destination,
}

/// What an author writes of a message. No subject is an empty one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Letter {
    /// One line, without control characters.
    pub subject: String,
    /// At least one of the two is there. Neither holds NUL.
    pub text: Option<String>,
    pub html: Option<String>,
    pub include_collaborators: bool,
}

impl Email {
    /// `relay`: the one in force. Another may be when it is delivered; that one carries it then, and this is what caps,
    /// lists and suspensions know it by.
    pub fn new(letter: Letter, relay: Destination) -> Self {
        let Letter { subject, text, html, include_collaborators } = letter;
        let mut members = Map::new();
        members.insert("subject".to_owned(), subject.into());
        members.extend(text.map(|text| ("text".to_owned(), text.into())));
        members.extend(html.map(|html| ("html".to_owned(), html.into())));
        members.insert("include_collaborators".to_owned(), include_collaborators.into());
        Self { content: Value::Object(members).to_string().into(), relay }
    }

    /// What [`Self::content`] gave; `None`: it is not that.
    pub fn stored(content: Bytes, relay: Destination) -> Option<Self> {
        letter(&content)?;
        Some(Self { content, relay })
    }

    /// The members `subject`, `text`, `html` and `include_collaborators` of an object.
    pub fn content(&self) -> &Bytes {
        &self.content
    }

    pub fn relay(&self) -> &Destination {
        &self.relay
    }

    pub fn letter(&self) -> Letter {
        // Only what reads back gets here.
        letter(&self.content).unwrap_or_default()
    }
}

fn letter(content: &[u8]) -> Option<Letter> {
    let Value::Object(mut members) = serde_json::from_slice(content).ok()? else { return None };
    let mut text = |name: &str| match members.remove(name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    let (subject, text, html) = (text("subject")?, text("text"), text("html"));
    let include_collaborators = members.get("include_collaborators")?.as_bool()?;
    (text.is_some() || html.is_some()).then_some(Letter { subject, text, html, include_collaborators })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::policy::{Host, Scheme};

    #[test]
    fn a_letter_reads_back_from_its_content_and_nothing_else_does() {
        let relay =
            Destination { scheme: Scheme::Smtps, host: Host::Address(IpAddr::from([192, 0, 2, 25])), port: 465 };
        let whole = Letter {
            subject: "Zw\u{f6}lf \"Boxk\u{e4}mpfer\"".to_owned(),
            text: Some("a\r\n.\nb".to_owned()),
            html: Some("<b>\u{1f980}</b>".to_owned()),
            include_collaborators: true,
        };
        for letter in [
            whole.clone(),
            Letter { text: None, ..whole.clone() },
            Letter { html: None, include_collaborators: false, ..whole.clone() },
            Letter { subject: String::new(), ..whole },
        ] {
            let email = Email::new(letter.clone(), relay.clone());
            assert_eq!(email.letter(), letter);
            assert_eq!(Email::stored(email.content().clone(), relay.clone()), Some(email));
        }
        for content in ["", "{}", "[]", "{\"subject\":\"s\",\"include_collaborators\":false}", "{\"subject\":1}"] {
            assert_eq!(Email::stored(Bytes::from(content), relay.clone()), None, "{content}");
        }
    }
}
