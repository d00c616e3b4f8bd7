//! `testlink`: joins two namespaces by a link that is told on its input when to break.

use std::io::{self, BufRead as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde::Serialize;
use testlink::words::{self, Order};
use testlink::{Counts, End, Link, Namespace, Shape};

const EXAMPLES: &str = "Examples:
  ip netns add here; ip netns add there
  testlink here=10.77.3.1/24 there=10.77.3.2/24 --rate 200M --delay 40ms
  testlink here=10.77.3.1/24 there=10.77.3.2/24 --rate 100M --delay 40ms --loss 0.1 --seed 7

It prints a line of JSON once packets are carried, then one for each line of its input, which are
  cut [TIME]    nothing gets through, for so long or until mended
  mend          open again
  rate RATE     delay TIME     loss PERCENT
  count         nothing; the answer says what became of the packets so far, both ways
and ends at the end of its input. `carried` are the packets that went over the line, with the headers of IP.";

/// A slow, far, lossy link between two network namespaces, over which the kernel's own TCP runs.
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES)]
struct Words {
    /// Where the first end is, and its address: the name of a namespace (or a path to one), `=`, ADDRESS/LENGTH
    near: String,
    /// The same of the second end
    far: String,
    /// Bits a second, each way
    #[arg(long, default_value = "200M", value_parser = words::rate)]
    rate: u64,
    /// How long a packet takes, each way
    #[arg(long, default_value = "0", value_parser = words::delay, value_name = "TIME")]
    delay: Duration,
    /// Bytes that may wait to be sent, each way [default: what fits the way there and back, and 1 MiB at least]
    #[arg(long, value_name = "BYTES")]
    queue: Option<usize>,
    /// Percent of the packets that are lost
    #[arg(long, default_value = "0", value_parser = words::loss, value_name = "PERCENT")]
    loss: u32,
    /// Which ones
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What the interfaces are called
    #[arg(long, default_value = "link0")]
    interface: String,
    /// The longest packet
    #[arg(long, default_value_t = 1500)]
    mtu: u32,
}

/// What is said in answer to anything.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Answer {
    /// It was done.
    Done { there: Counts, back: Counts },
    /// It was not understood.
    Error { message: String },
}

fn main() -> ExitCode {
    match run(&Words::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &Words) -> io::Result<()> {
    let shape = Shape::new(words.rate, words.delay);
    let shape = Shape {
        queue: words.queue.unwrap_or(shape.queue),
        loss: words.loss,
        ..shape
    };
    let ((near, near_address), (far, far_address)) = (place(&words.near)?, place(&words.far)?);
    let first = End {
        namespace: &near,
        address: near_address,
    };
    let second = End {
        namespace: &far,
        address: far_address,
    };
    let interface = (words.interface.as_str(), words.mtu);
    let link = Link::join([first, second], interface, (shape, words.seed))?;
    answer(Ok(()), &link)?;
    for line in io::stdin().lock().lines() {
        let order = Order::parse(&line?);
        answer(order.map(|order| obey(&link, order)), &link)?;
    }
    Ok(())
}

/// The namespace and the address of an end.
fn place(text: &str) -> io::Result<(Namespace, &str)> {
    let Some((name, address)) = text.split_once('=') else {
        let what = format!("{text} is no NAMESPACE=ADDRESS/LENGTH");
        return Err(io::Error::other(what));
    };
    Ok((Namespace::named(name)?, address))
}

fn obey(link: &Link, order: Order) {
    match order {
        Order::Cut(span) => {
            link.cut();
            if let Some(span) = span {
                std::thread::sleep(span);
                link.mend();
            }
        }
        Order::Mend => link.mend(),
        _ => link.reshape(|shape| order.apply(shape)),
    }
}

fn answer(done: Result<(), String>, link: &Link) -> io::Result<()> {
    let [there, back] = link.counts();
    let answer = match done {
        Ok(()) => Answer::Done { there, back },
        Err(message) => Answer::Error { message },
    };
    let text = serde_json::to_string(&answer)?;
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}
