//! XML parts of office files, read event by event. Nothing is expanded, no tree is built.

use std::borrow::Cow;

use quick_xml::events::attributes::Attribute;
use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};

use super::ReadError;

/// Next node of a part.
pub(super) enum XmlNode<'a> {
    Start(BytesStart<'a>),
    /// With the element's name without its prefix.
    End(String),
    Text(Cow<'a, str>),
}

/// Reader of a part, from its start to its end.
pub(super) struct XmlNodes<'a> {
    reader: Reader<&'a [u8]>,
    kind: &'static str,
}

impl<'a> XmlNodes<'a> {
    /// `kind` is for errors, such as `DOCX`.
    pub(super) fn new(text: &'a str, kind: &'static str) -> Self {
        let mut reader = Reader::from_str(text);
        reader.config_mut().expand_empty_elements = true;
        Self { reader, kind }
    }

    /// Returns the next element or text; `None` at the end.
    ///
    /// # Errors
    /// If the part is no XML, or defines entities: office files have none, bombs do.
    pub(super) fn next(&mut self) -> Result<Option<XmlNode<'a>>, ReadError> {
        loop {
            let event = self.reader.read_event().map_err(|e| ReadError::broken(self.kind, e))?;
            return Ok(Some(match event {
                Event::Start(start) | Event::Empty(start) => XmlNode::Start(start),
                Event::End(end) => XmlNode::End(end.local_name().as_ref().to_owned()),
                Event::Text(text) => XmlNode::Text(text.xml10_content().into_owned().into()),
                Event::CData(text) => XmlNode::Text(text.xml10_content().into_owned().into()),
                Event::GeneralRef(name) => XmlNode::Text(self.character(&name)?.into()),
                Event::DocType(_) => {
                    return Err(ReadError::broken(self.kind, "it defines its own XML entities"));
                }
                Event::Eof => return Ok(None),
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) => continue,
            }));
        }
    }

    fn character(&self, name: &quick_xml::events::BytesRef<'_>) -> Result<String, ReadError> {
        let number = name.resolve_char_ref().map_err(|e| ReadError::broken(self.kind, e))?;
        let named = || quick_xml::escape::resolve_predefined_entity(name).map(str::to_owned);
        number
            .map(String::from)
            .or_else(named)
            .ok_or_else(|| ReadError::broken(self.kind, format!("unknown entity &{};", &**name)))
    }
}

/// Returns an attribute by its name without prefix.
pub(super) fn attribute(start: &BytesStart<'_>, name: &str) -> Option<String> {
    find(start, |attribute| attribute.key.local_name().as_ref() == name)
}

/// Returns the attribute with a relationship id: `r:id`, beside which an `id` may stand.
pub(super) fn relationship(start: &BytesStart<'_>) -> Option<String> {
    find(start, |attribute| {
        attribute.key.prefix().is_some() && attribute.key.local_name().as_ref() == "id"
    })
}

fn find(start: &BytesStart<'_>, wanted: impl Fn(&Attribute<'_>) -> bool) -> Option<String> {
    let mut attributes = start.attributes();
    attributes.with_checks(false);
    let found = attributes.filter_map(Result::ok).find(wanted)?;
    found.normalized_value(XmlVersion::Implicit1_0).ok().map(Cow::into_owned)
}
