//! The broker as a program, for clients in other processes.

use std::error::Error;
use std::io::Write;
use std::time::Duration;

use clap::Parser;
use service_bus_broker::{QueueSettings, Settings, TopicSettings};

/// A Service Bus lookalike for tests. Runs until it is interrupted.
#[derive(Debug, Parser)]
struct Arguments {
    /// Address to listen on; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:5672")]
    listen: String,
    /// A queue, with its own lock time where the others' does not suit it; may be given again.
    #[arg(long = "queue", value_name = "NAME[@SECONDS]", value_parser = parse_queue)]
    queues: Vec<(String, Option<f64>)>,
    /// A queue that drops duplicates; may be given again.
    #[arg(long = "unique-queue", value_name = "NAME")]
    unique_queues: Vec<String>,
    /// A subscription as TOPIC/NAME; may be given again, for the same topic too.
    #[arg(long = "subscription", value_name = "TOPIC/NAME", value_parser = parse_subscription)]
    subscriptions: Vec<(String, String)>,
    /// Seconds a delivery is locked.
    #[arg(long, default_value_t = 60.0, value_parser = parse_seconds)]
    lock: f64,
    /// Failed deliveries until a message becomes a dead letter.
    #[arg(long, default_value_t = 10)]
    max_delivery_count: u32,
    /// Seconds a message id is remembered by the queues that drop duplicates.
    #[arg(long, default_value_t = 600.0, value_parser = parse_seconds)]
    duplicate_window: f64,
    /// Largest message or batch in bytes.
    #[arg(long, default_value_t = 256 * 1024)]
    max_message_size: u64,
    /// Take any token.
    #[arg(long)]
    no_token_check: bool,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "give a number of seconds".to_owned())?;
    let legal = seconds > 0.0 && seconds < 1e9;
    legal.then_some(seconds).ok_or_else(|| "give seconds above 0 and below 1e9".to_owned())
}

fn parse_queue(text: &str) -> Result<(String, Option<f64>), String> {
    match text.split_once('@') {
        Some((name, lock)) => Ok((name.to_owned(), Some(parse_seconds(lock)?))),
        None => Ok((text.to_owned(), None)),
    }
}

fn parse_subscription(text: &str) -> Result<(String, String), String> {
    let (topic, name) = text.split_once('/').ok_or("give it as TOPIC/NAME")?;
    Ok((topic.to_owned(), name.to_owned()))
}

impl Arguments {
    fn settings(&self) -> Settings {
        let queue = |name: &str| QueueSettings {
            lock: Duration::from_secs_f64(self.lock),
            max_delivery_count: self.max_delivery_count,
            ..QueueSettings::new(name)
        };
        let plain = self.queues.iter().map(|(name, lock)| match lock {
            Some(lock) => QueueSettings { lock: Duration::from_secs_f64(*lock), ..queue(name) },
            None => queue(name),
        });
        let window = Duration::from_secs_f64(self.duplicate_window);
        let unique = self
            .unique_queues
            .iter()
            .map(|name| QueueSettings { duplicate_window: Some(window), ..queue(name) });
        let mut topics: Vec<TopicSettings> = Vec::new();
        for (topic, name) in &self.subscriptions {
            match topics.iter_mut().find(|known| known.name == *topic) {
                Some(known) => known.subscriptions.push(queue(name)),
                None => topics
                    .push(TopicSettings { name: topic.clone(), subscriptions: vec![queue(name)] }),
            }
        }
        Settings {
            queues: plain.chain(unique).collect(),
            topics,
            max_message_size: self.max_message_size,
            check_tokens: !self.no_token_check,
            ..Settings::default()
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let broker = service_bus_broker::start(&arguments.listen, arguments.settings()).await?;
    let mut out = std::io::stdout();
    writeln!(out, "listening on {}", broker.addr())?;
    writeln!(out, "{}", broker.connection_string())?;
    out.flush()?;
    tokio::signal::ctrl_c().await?;
    broker.shutdown().await;
    Ok(())
}
