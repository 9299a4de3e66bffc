//! E-mail: who wrote to whom about what, and the text; attachments by their names alone.

use mail_parser::{Address, Message, MessageParser, MimeHeaders, PartType};
use serde_json::Value;

use super::{Content, Document, Limits, ReadError, html};

/// Reads a message as it is sent (RFC 5322). The text is preferred to the same in HTML.
///
/// # Errors
/// If it is no message, or has no text or too much.
pub(super) fn read(bytes: &[u8], limits: &Limits) -> Result<Document, ReadError> {
    let message = MessageParser::default().parse(bytes);
    let message = message.filter(|message| message.from().is_some() || message.subject().is_some());
    let message = message.ok_or_else(|| ReadError::broken("e-mail", "it has no headers"))?;
    let (body, markdown) = body(&message, limits)?;
    let about = about(&message);
    let mut text = String::new();
    for (name, value) in &about {
        let value = match value {
            Value::Array(names) => {
                names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
            }
            value => value.as_str().unwrap_or_default().to_owned(),
        };
        if !value.is_empty() {
            let (first, rest) = name.split_at(1);
            text.push_str(&format!("{}{rest}: {value}\n", first.to_uppercase()));
        }
    }
    text.push('\n');
    text.push_str(body.trim());
    text.push('\n');
    if body.trim().is_empty() && message.subject().is_none_or(|subject| subject.trim().is_empty()) {
        return Err(ReadError::Empty);
    }
    if text.len() as u64 > limits.text_bytes {
        return Err(ReadError::TooMuchText { limit: limits.text_bytes });
    }
    let mut document = Document::text("eml", text, markdown);
    for (name, value) in about {
        document.tell(name, value);
    }
    Ok(document)
}

fn about(message: &Message<'_>) -> Vec<(&'static str, Value)> {
    let attachments: Vec<Value> = message
        .attachments()
        .map(|part| part.attachment_name().unwrap_or("a part without a name").into())
        .collect();
    vec![
        ("subject", message.subject().unwrap_or_default().into()),
        ("from", people(message.from()).into()),
        ("to", people(message.to()).into()),
        ("cc", people(message.cc()).into()),
        ("date", message.date().map(|date| date.to_rfc3339()).unwrap_or_default().into()),
        ("attachments", attachments.into()),
    ]
}

fn people(addresses: Option<&Address<'_>>) -> String {
    let person = |(name, address): (Option<&str>, Option<&str>)| match (name, address) {
        (Some(name), Some(address)) => format!("{name} <{address}>"),
        (name, address) => name.or(address).unwrap_or_default().to_owned(),
    };
    let all = addresses.into_iter().flat_map(Address::iter);
    let all: Vec<String> = all.map(|one| person((one.name(), one.address()))).collect();
    all.join(", ")
}

/// The text of all parts that are shown, and whether it is Markdown.
fn body(message: &Message<'_>, limits: &Limits) -> Result<(String, bool), ReadError> {
    let mut texts = Vec::new();
    let mut markdown = false;
    for part in message.text_bodies() {
        match &part.body {
            PartType::Text(text) => texts.push(text.trim().to_owned()),
            PartType::Html(page) => match html::convert(page, limits) {
                Ok(Document { content: Content::Text { text, .. }, .. }) => {
                    texts.push(text.trim().to_owned());
                    markdown = true;
                }
                Ok(_) | Err(ReadError::Empty) => {}
                Err(error) => return Err(error),
            },
            _ => {}
        }
    }
    Ok((texts.join("\n\n"), markdown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_its_headers_and_its_text() {
        let mail = "From: =?iso-2022-jp?B?GyRCOzNFRBsoQg==?= <yamada@example.jp>\r\n\
                    To: b@example.jp\r\nSubject: =?utf-8?B?6KuL5rGC5pu4?=\r\n\
                    Date: Mon, 2 Mar 2026 09:00:00 +0900\r\nMIME-Version: 1.0\r\n\
                    Content-Type: multipart/mixed; boundary=x\r\n\r\n\
                    --x\r\nContent-Type: text/html\r\n\r\n<h1>Due</h1><p>Pay by Friday.\r\n\
                    --x\r\nContent-Type: application/pdf\r\n\
                    Content-Disposition: attachment; filename=invoice.pdf\r\n\r\n%PDF\r\n--x--\r\n";
        let document = read(mail.as_bytes(), &Limits::default()).unwrap();
        let Content::Text { text, markdown } = document.content else { panic!() };
        assert!(markdown);
        assert_eq!(
            text,
            "Subject: 請求書\nFrom: 山田 <yamada@example.jp>\nTo: b@example.jp\n\
             Date: 2026-03-02T09:00:00+09:00\nAttachments: invoice.pdf\n\n# Due\n\n\
             Pay by Friday.\n"
        );
        assert_eq!(document.metadata["from"], "山田 <yamada@example.jp>");
    }

    #[test]
    fn no_message_is_no_message() {
        assert!(read(b"\x00\x01\x02", &Limits::default()).is_err());
    }
}
