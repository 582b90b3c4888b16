//! Ranks that are threads of one process: what ranks do is tried with them where there is no MPI.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use super::{Incoming, Outgoing, Ranks, Wait};
use crate::error::{Error, Result};

/// What goes from one to another.
#[derive(Debug)]
enum Message {
    Floats(Vec<f32>),
    Numbers(Vec<u64>),
}

/// A thread that is a rank.
#[derive(Debug)]
pub struct ThreadRank {
    rank: usize,
    /// By rank; of its own, too.
    to: Vec<Sender<Message>>,
    from: Vec<Receiver<Message>>,
}

/// Ranks that reach one another, each for a thread.
#[must_use]
pub fn ranks(size: usize) -> Vec<ThreadRank> {
    let mut all: Vec<ThreadRank> =
        (0..size).map(|rank| ThreadRank { rank, to: Vec::new(), from: Vec::new() }).collect();
    for from in 0..size {
        for to in 0..size {
            let (sender, receiver) = channel();
            all[from].to.push(sender);
            all[to].from.push(receiver);
        }
    }
    all
}

/// Has `size` threads do `body`, each as a rank, and returns what they return.
///
/// # Panics
/// If one of them does.
pub fn run<R: Send>(size: usize, body: impl Fn(&ThreadRank) -> R + Sync) -> Vec<R> {
    let body = &body;
    thread::scope(|scope| {
        let started: Vec<_> =
            ranks(size).into_iter().map(|rank| scope.spawn(move || body(&rank))).collect();
        started
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

impl ThreadRank {
    fn send(&self, to: usize, message: Message) -> Result<()> {
        self.to[to].send(message).map_err(|_| gone(to))
    }

    fn receive(&self, from: usize) -> Result<Message> {
        self.from[from].recv().map_err(|_| gone(from))
    }
}

fn gone(rank: usize) -> Error {
    Error::failure(format!("rank {rank} is gone"))
}

/// Ranks that do not call the same functions in the same order.
fn out_of_step(rank: usize) -> Error {
    Error::failure(format!("rank {rank} does something else"))
}

impl Ranks for ThreadRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.to.len()
    }

    fn here(&self) -> usize {
        self.size()
    }

    fn exchange(
        &self,
        sends: &[Outgoing<'_>],
        receives: &mut [Incoming<'_>],
        _: Wait,
    ) -> Result<()> {
        for (to, values) in sends {
            self.send(*to, Message::Floats(values.to_vec()))?;
        }
        for (from, room) in receives {
            match self.receive(*from)? {
                Message::Floats(values) if values.len() == room.len() => {
                    room.copy_from_slice(&values);
                }
                _ => return Err(out_of_step(*from)),
            }
        }
        Ok(())
    }

    fn tell(&self, mine: &[u64], all: &mut [u64]) -> Result<()> {
        assert_eq!(all.len(), mine.len() * self.size(), "room for the numbers of all");
        for to in 0..self.size() {
            self.send(to, Message::Numbers(mine.to_vec()))?;
        }
        for from in 0..self.size() {
            match self.receive(from)? {
                Message::Numbers(numbers) if numbers.len() == mine.len() => {
                    all[from * mine.len()..][..mine.len()].copy_from_slice(&numbers);
                }
                _ => return Err(out_of_step(from)),
            }
        }
        Ok(())
    }

    /// The others notice that this one is gone.
    fn abort(&self, _: u8) {}
}
