//! E-mail: sender, recipients, subject and text; attachments by their names alone, except messages,
//! which are read too.

use mail_parser::{Address, Message, MessageParser, MimeHeaders, PartType};
use serde_json::Value;

use super::{Document, DocumentContent, ReadError, ReadLimits, html};

/// Depth to which messages within messages are read: a mail that was forwarded a few times.
const MAX_DEPTH: usize = 4;

/// Reads a message as it is sent (RFC 5322). Plain text is preferred to the same in HTML.
///
/// # Errors
/// If it is no message, or has no text or too much.
pub(super) fn read(bytes: &[u8], limits: &ReadLimits) -> Result<Document, ReadError> {
    let message = MessageParser::default().parse(bytes);
    let is_one = |message: &Message<'_>| {
        message.from().is_some() || message.subject().is_some() || message.content_type().is_some()
    };
    let message = message.filter(is_one);
    let message = message.ok_or_else(|| ReadError::broken("e-mail", "it has no headers"))?;
    let mut mail = MailText::default();
    mail.write(&message, limits, MAX_DEPTH)?;
    if !mail.has_text {
        return Err(ReadError::Empty);
    }
    let mut document = Document::text("eml", mail.text, mail.markdown);
    for (name, value) in headers(&message) {
        document.set_metadata(name, value);
    }
    Ok(document)
}

/// Text of a message and those within it, one after the other.
#[derive(Debug, Default)]
struct MailText {
    text: String,
    markdown: bool,
    has_text: bool,
}

impl MailText {
    fn write(
        &mut self,
        message: &Message<'_>,
        limits: &ReadLimits,
        depth: usize,
    ) -> Result<(), ReadError> {
        let (body, markdown) = body(message, limits)?;
        let subject = message.subject().unwrap_or_default();
        self.has_text |= !body.trim().is_empty() || !subject.trim().is_empty();
        self.markdown |= markdown;
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        for (name, value) in headers(message) {
            let names = |names: Vec<&str>| names.join(", ");
            let value = match &value {
                Value::Array(all) => names(all.iter().filter_map(Value::as_str).collect()),
                value => value.as_str().unwrap_or_default().to_owned(),
            };
            if !value.is_empty() {
                let (first, rest) = name.split_at(1);
                self.text.push_str(&format!("{}{rest}: {value}\n", first.to_uppercase()));
            }
        }
        self.text.push_str(&format!("\n{}\n", body.trim()));
        if self.text.len() as u64 > limits.text_bytes {
            return Err(ReadError::TooMuchText { limit: limits.text_bytes });
        }
        for part in message.attachments() {
            if let PartType::Message(within) = &part.body
                && depth > 0
            {
                self.write(within, limits, depth - 1)?;
            }
        }
        Ok(())
    }
}

fn headers(message: &Message<'_>) -> Vec<(&'static str, Value)> {
    let attachments: Vec<Value> = message
        .attachments()
        .filter(|part| !matches!(part.body, PartType::Message(_)))
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

/// Returns the text of all parts that are shown, and whether it is Markdown.
fn body(message: &Message<'_>, limits: &ReadLimits) -> Result<(String, bool), ReadError> {
    let mut texts = Vec::new();
    let mut markdown = false;
    for part in message.text_bodies() {
        match &part.body {
            PartType::Text(text) => texts.push(text.trim().to_owned()),
            PartType::Html(page) => match html::convert(page, limits) {
                Ok(Document { content: DocumentContent::Text { text, .. }, .. }) => {
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
        let document = read(mail.as_bytes(), &ReadLimits::default()).unwrap();
        let DocumentContent::Text { text, markdown } = document.content else { panic!() };
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
    fn a_forwarded_message_is_read_with_its_own_headers() {
        let mail = "From: a@b\r\nSubject: Fwd\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n\
                    --x\r\nContent-Type: text/plain\r\n\r\nSee below.\r\n\
                    --x\r\nContent-Type: message/rfc822\r\n\r\n\
                    From: c@d\r\nSubject: Due\r\n\r\nPay by Friday.\r\n--x--\r\n";
        let document = read(mail.as_bytes(), &ReadLimits::default()).unwrap();
        let DocumentContent::Text { text, .. } = document.content else { panic!() };
        assert_eq!(
            text,
            "Subject: Fwd\nFrom: a@b\n\nSee below.\n\nSubject: Due\nFrom: c@d\n\nPay by Friday.\n"
        );
        assert_eq!(document.metadata["subject"], "Fwd");
    }

    #[test]
    fn no_message_is_no_message() {
        assert!(read(b"\x00\x01\x02", &ReadLimits::default()).is_err());
    }
}
