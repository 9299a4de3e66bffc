//! Faults that a test asks for: what is to be lost or delayed, and orders to every connection.

use std::collections::VecDeque;
use std::time::Duration;

use hyper::StatusCode;

/// What gets lost with a message on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The broker does what it was told, and the answer is lost.
    Confirmation,
    /// The order itself is lost: nothing is done and nothing is answered.
    Order,
}

/// What the test wants lost, counted down as it happens.
#[derive(Debug, Default)]
pub struct Losses {
    left: usize,
    loss: Option<Loss>,
}

impl Losses {
    pub fn plan(&mut self, count: usize, loss: Loss) {
        *self = Self { left: count, loss: Some(loss) };
    }

    /// Whether the one that happens now is to be lost.
    pub fn next(&mut self) -> Option<Loss> {
        self.left = self.left.checked_sub(1)?;
        self.loss
    }
}

/// The faults in force.
#[derive(Debug, Default)]
pub struct Faults {
    pub settlements: Losses,
    pub sends: Losses,
    pub settlement_delay: Duration,
    /// What the next HTTP requests are refused with.
    pub refusals: VecDeque<StatusCode>,
}

/// An order to every open connection.
#[derive(Debug, Clone)]
pub enum Order {
    /// Break off without a word.
    Drop,
    /// Detach the links of one entity, with this error.
    Detach { path: String, condition: String },
    /// Take all tokens as ended.
    ExpireTokens,
}
