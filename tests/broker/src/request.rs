//! Request and reply messages: the shape that `$cbs` and `$management` share.

use bytes::Bytes;
use serde_amqp::Value;

use crate::wire::{
    self, AMQP_VALUE, APPLICATION_PROPERTIES, Malformed, Map, PROPERTIES, as_text, entry,
};

/// A request, as far as its receiver looks at it.
#[derive(Debug)]
pub struct Request {
    pub message_id: Value,
    pub reply_to: Option<String>,
    pub properties: Map,
    pub body: Value,
}

/// A reply, not yet encoded.
#[derive(Debug)]
pub struct Reply {
    pub status: i32,
    pub description: String,
    /// The AMQP error condition of a failure.
    pub condition: Option<&'static str>,
    pub body: Value,
}

impl Request {
    pub fn parse(bytes: &Bytes) -> Result<Self, Malformed> {
        let mut request = Self {
            message_id: Value::Null,
            reply_to: None,
            properties: Map::new(),
            body: Value::Null,
        };
        for (code, start, end) in wire::sections(bytes)? {
            let section = &bytes[start..end];
            match code {
                PROPERTIES => {
                    let fields = wire::decode_list(section)?;
                    request.message_id = fields.first().cloned().unwrap_or_default();
                    request.reply_to = fields.get(4).and_then(as_text).map(str::to_owned);
                }
                APPLICATION_PROPERTIES => request.properties = wire::decode_map(section)?,
                AMQP_VALUE => request.body = wire::decode_described(section)?,
                _ => {}
            }
        }
        Ok(request)
    }

    pub fn operation(&self) -> &str {
        self.text("operation").unwrap_or_default()
    }

    pub fn text(&self, property: &str) -> Option<&str> {
        entry(&self.properties, property).and_then(as_text)
    }

    /// An entry of the body's map.
    pub fn argument(&self, name: &str) -> Option<&Value> {
        match &self.body {
            Value::Map(map) => entry(map, name),
            _ => None,
        }
    }
}

impl Reply {
    pub fn ok(body: Map) -> Self {
        Self { status: 200, description: "OK".to_owned(), condition: None, body: Value::Map(body) }
    }

    pub fn failure(status: i32, condition: &'static str, description: impl Into<String>) -> Self {
        let body = Value::Map(Map::new());
        Self { status, description: description.into(), condition: Some(condition), body }
    }

    /// Encodes the reply to the request with this message id.
    pub fn encode(self, message_id: Value) -> Bytes {
        // The correlation id is the sixth field.
        let mut fields = vec![Value::Null; 5];
        fields.push(message_id);
        let mut properties = Map::new();
        // The service spells the names differently on its two nodes, and clients look for either.
        for name in ["statusCode", "status-code"] {
            properties.insert(wire::string(name), Value::Int(self.status));
        }
        for name in ["statusDescription", "status-description"] {
            properties.insert(wire::string(name), wire::string(&self.description));
        }
        if let Some(condition) = self.condition {
            for name in ["errorCondition", "error-condition"] {
                properties.insert(wire::string(name), wire::symbol(condition));
            }
        }
        let mut bytes = wire::section(PROPERTIES, Value::List(fields));
        bytes.extend(wire::section(APPLICATION_PROPERTIES, Value::Map(properties)));
        bytes.extend(wire::section(AMQP_VALUE, self.body));
        bytes.into()
    }
}
