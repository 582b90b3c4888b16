//! A service on tokio that answers requests, and trains its model between them.
//!
//! One thread does everything. A step is run a few tiles at a time (`Slices::run_for`); between two
//! slices the task yields, so that connections go on, and answers what they have asked. A request
//! therefore waits for a few tiles at most, not for a step. Answers come from the weights of
//! the last whole step: a copy, for those in training change beneath. Tokio could as well move
//! the task to another thread between two slices: `Slices` are `Send`.
//!
//! A request is a line of token ids, its answer the ids that follow them.
//!
//! Run: `cargo run --release --example tokio_service`

mod common;

use cllm_core::generate::{GeneratePlan, GeneratePools, Generator};
use cllm_core::sample::{Candidate, Sampler, SamplerConfig};
use cllm_core::{Batch, Engine, Kernels, Line, ModelConfig, Optimizer, Slices, Spin};
use common::{Memory, RATE};
use core::net::SocketAddr;
use core::time::Duration;
use std::io;
use std::time::Instant;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task;
use tokio::time::sleep;

const STEPS: u32 = 12;
/// Tiles of a slice: what a request may have to wait for.
const TILES: usize = 4;
/// Tokens of an answer.
const ANSWER: usize = 8;
/// Clients, and requests of each.
const CLIENTS: usize = 3;
const REQUESTS: u32 = 5;
/// What a client does between two of them.
const PAUSE: Duration = Duration::from_millis(5);

/// A prompt, and where its answer goes.
struct Request {
    prompt: Vec<u32>,
    answer: oneshot::Sender<Vec<u32>>,
}

/// Hands a connection's requests to the model's task.
async fn serve(stream: TcpStream, model: mpsc::Sender<Request>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await? {
        let prompt = line.split_whitespace().filter_map(|id| id.parse().ok()).collect();
        let (answer, answered) = oneshot::channel();
        if model.send(Request { prompt, answer }).await.is_err() {
            break;
        }
        let ids = answered.await.unwrap_or_default();
        let words: Vec<String> = ids.iter().map(u32::to_string).collect();
        write.write_all(format!("{}\n", words.join(" ")).as_bytes()).await?;
    }
    Ok(())
}

/// Asks one question after the other; how long the slowest answer took.
async fn client(service: SocketAddr) -> io::Result<Duration> {
    let (read, mut write) = TcpStream::connect(service).await?.into_split();
    let (mut lines, mut slowest) = (BufReader::new(read).lines(), Duration::ZERO);
    for n in 0..REQUESTS {
        let begin = Instant::now();
        write.write_all(format!("{} {} {}\n", n, n + 6, n + 14).as_bytes()).await?;
        let answer = lines.next_line().await?.unwrap_or_default();
        slowest = slowest.max(begin.elapsed());
        assert_eq!(answer.split_whitespace().count(), ANSWER, "an answer: {answer:?}");
        sleep(PAUSE).await;
    }
    Ok(slowest)
}

/// The model as it was after the last whole step.
struct Snapshot {
    config: ModelConfig,
    weights: Vec<f32>,
    answers: u32,
}

impl Snapshot {
    /// The likeliest continuation, or nothing for a prompt that makes no sense.
    fn answer(&mut self, request: Request) {
        self.answers += 1;
        let text = self.continued(request.prompt).unwrap_or_default();
        // A client that has gone wants no answer.
        let _ = request.answer.send(text);
    }

    fn continued(&self, mut text: Vec<u32>) -> Option<Vec<u32>> {
        let kernels = Kernels::detect();
        let plan = GeneratePlan::new(&self.config, kernels).ok()?;
        let pools = GeneratePools {
            parameters: &self.weights,
            packed: &mut vec![Line::ZERO; plan.packed_lines()],
            cache: &mut vec![Line::ZERO; plan.cache_lines()],
            activations: &mut vec![Line::ZERO; plan.activation_lines()],
        };
        let mut generator = Generator::new(&plan, kernels, pools).ok()?;
        let greedy = SamplerConfig { temperature: 0.0, ..SamplerConfig::default() };
        let mut sampler = Sampler::new(greedy).ok()?;
        let mut memory = vec![Candidate::EMPTY; self.config.vocab_size];
        let prompt = text.len();
        for _ in 0..ANSWER {
            let logits = generator.logits_after(&text).ok()?;
            text.push(sampler.sample(logits, &[], &mut memory));
        }
        Some(text.split_off(prompt))
    }
}

/// Runs a step to its end, and answers what is asked meanwhile.
async fn train<T: Copy>(
    mut step: Slices<'_, '_, T>,
    requests: &mut mpsc::Receiver<Request>,
    model: &mut Snapshot,
) -> T {
    loop {
        while let Ok(request) = requests.try_recv() {
            model.answer(request);
        }
        if let Some(result) = step.run_for(TILES).expect("the step works") {
            return result;
        }
        task::yield_now().await;
    }
}

async fn service() -> io::Result<u64> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (address, (ask, mut requests)) = (listener.local_addr()?, mpsc::channel(8));
    task::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            task::spawn(serve(stream, ask.clone()));
        }
    });
    let clients: Vec<_> = (0..CLIENTS).map(|_| task::spawn(client(address))).collect();

    let plan = common::plan(1);
    let mut memory = Memory::new(&plan);
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&plan, queue).expect("the memory is the plan's");
    let mut trainer = common::trainer(&plan, pools, &engine, &Spin);
    let weights = trainer.parameters().to_vec();
    let mut model = Snapshot { config: *plan.config(), weights, answers: 0 };
    for step in 0..STEPS {
        let [tokens, targets] = common::inputs(&plan, step);
        let batch = Batch::new(&tokens, &targets);
        let gradients = trainer.accumulate_in_slices(&batch, batch.counted());
        let loss = train(gradients.expect("the batch fits"), &mut requests, &mut model).await;
        let update = trainer.update_in_slices(&Optimizer::default(), RATE);
        train(update.expect("there are gradients"), &mut requests, &mut model).await;
        model.weights.copy_from_slice(trainer.parameters());
        println!("step {step}: loss {:.4}, {} answers so far", loss.mean(), model.answers);
    }
    let during = model.answers;
    // Trained; what is left to do is to answer.
    while clients.iter().any(|client| !client.is_finished()) {
        while let Ok(request) = requests.try_recv() {
            model.answer(request);
        }
        task::yield_now().await;
    }
    let mut slowest = Duration::ZERO;
    for client in clients {
        slowest = slowest.max(client.await??);
    }
    println!("{during} of {} answers while it trained, the slowest in {slowest:?}", model.answers);
    assert!(during > 0, "nobody was answered before the training was over");
    assert_eq!(model.answers, CLIENTS as u32 * REQUESTS);
    Ok(common::hash(trainer.parameters()))
}

pub(crate) fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let hash = runtime.expect("a runtime starts").block_on(service()).expect("the service serves");
    println!("weights {hash:016x}");
    assert_eq!(hash, common::train_alone(STEPS), "the same bits, whatever is asked meanwhile");
}
