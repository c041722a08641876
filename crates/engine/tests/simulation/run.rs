use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use tandem_engine::{EngineSettings, FinishReason, Finished, Request, RequestId, Scheduler, SubmitError, Update};
use tandem_step::{Capacity, StepPlan, StepResult, TokenLogprobs};

use super::{HashWorker, expected};

/// What became of a request so far.
#[derive(Debug)]
pub struct Outcome {
    pub request: Request,
    pub cached: Option<u32>,
    pub scores: Vec<TokenLogprobs>,
    pub tokens: Vec<u32>,
    pub finished: Option<Finished>,
}

impl Outcome {
    /// Prompt and output.
    pub fn sequence(&self) -> Vec<u32> {
        [&self.request.prompt[..], &self.tokens[..]].concat()
    }

    fn take(&mut self, update: Update) {
        assert!(self.finished.is_none(), "an update after the end: {update:?}");
        match update {
            Update::Started { cached_tokens } => {
                assert!(self.cached.replace(cached_tokens).is_none(), "started twice");
                assert!((cached_tokens as usize) < self.request.prompt.len());
            }
            Update::PromptScores(scores) => {
                assert!(self.cached.is_some() && self.tokens.is_empty());
                self.scores.extend(scores);
            }
            Update::Token { token, logprobs } => {
                assert!(self.cached.is_some());
                assert_eq!(logprobs.map(|logprobs| logprobs.token), self.request.sampling.logprobs.map(|_| token));
                self.tokens.push(token);
            }
            Update::Finished(finished) => self.finished = Some(finished),
        }
    }
}

/// A scheduler, the checking worker, and everything that was said, with the books audited after every call.
pub struct Simulation {
    pub capacity: Capacity,
    pub scheduler: Scheduler,
    pub now: Instant,
    pub outcomes: BTreeMap<RequestId, Outcome>,
    /// Slices run.
    pub slices: u64,
    worker: HashWorker,
    /// Results kept back, and whether their step had rows of its own.
    results: VecDeque<(StepResult, bool)>,
    /// Requests that the last step gave a token, and how many preemptions there had been.
    decoding: (Vec<RequestId>, u64),
}

impl Simulation {
    pub fn new(capacity: Capacity, settings: EngineSettings) -> Self {
        Self {
            worker: HashWorker::new(capacity, settings.prefill_chunk),
            scheduler: Scheduler::new(capacity, settings).unwrap(),
            now: Instant::now(),
            outcomes: BTreeMap::new(),
            slices: 0,
            results: VecDeque::new(),
            decoding: (Vec::new(), 0),
            capacity,
        }
    }

    pub fn try_submit(&mut self, request: Request) -> Result<RequestId, SubmitError> {
        let id = RequestId(self.outcomes.keys().last().map_or(0, |id| id.0 + 1));
        self.scheduler.submit(id, request.clone(), self.now)?;
        let (scores, tokens) = (Vec::new(), Vec::new());
        self.outcomes.insert(id, Outcome { request, cached: None, scores, tokens, finished: None });
        self.settle();
        Ok(id)
    }

    pub fn submit(&mut self, request: Request) -> RequestId {
        self.try_submit(request).unwrap()
    }

    pub fn abort(&mut self, id: RequestId) {
        self.scheduler.abort(id, self.now);
        self.settle();
    }

    /// Plans a step and runs it, keeping its result back.
    pub fn plan(&mut self) -> Option<StepPlan> {
        let plan = self.scheduler.next_plan(self.now);
        self.settle();
        if let Some(plan) = &plan {
            self.slices += u64::from(plan.slice.is_some());
            self.results.push_back((self.worker.run(plan.clone()), !plan.rows.is_empty()));
        }
        plan
    }

    /// Applies the oldest result kept back; `false` if there is none.
    pub fn apply(&mut self) -> bool {
        let Some((result, has_rows)) = self.results.pop_front() else { return false };
        self.worker.returned();
        let before = self.token_counts();
        self.scheduler.apply(result, self.now).unwrap();
        self.settle();
        if has_rows {
            self.check_decodes(&before);
        }
        true
    }

    fn token_counts(&self) -> BTreeMap<RequestId, usize> {
        let open = self.outcomes.iter().filter(|(_, outcome)| outcome.finished.is_none());
        open.map(|(id, outcome)| (*id, outcome.tokens.len())).collect()
    }

    /// Whoever got a token from a step gets one from the next too, whatever prompts are being computed beside it, unless
    /// it is over or somebody was preempted. A step without rows, which runs the rest of a pass, is not counted.
    fn check_decodes(&mut self, before: &BTreeMap<RequestId, usize>) {
        let got_token = |id: &RequestId| before.get(id).is_some_and(|count| self.outcomes[id].tokens.len() > *count);
        let preemptions = self.scheduler.stats().preemptions;
        if preemptions == self.decoding.1 {
            let stalled = self.decoding.0.iter().find(|id| before.contains_key(id) && !got_token(id));
            assert_eq!(stalled, None, "a decode was stalled");
        }
        self.decoding = (before.keys().copied().filter(got_token).collect(), preemptions);
    }

    /// As the engine's thread does: plan while there is something to plan, then take one result.
    pub fn step(&mut self) -> bool {
        self.now += Duration::from_millis(10);
        while self.plan().is_some() {}
        let is_moving = self.apply();
        assert!(is_moving || self.scheduler.open() == 0, "stuck with open requests");
        is_moving
    }

    /// Runs until nothing is left to do.
    pub fn finish(&mut self) {
        for _ in 0..100_000 {
            if !self.step() {
                return self.check_idle();
            }
        }
        panic!("the requests never end");
    }

    /// Submits a request and runs until nothing is left to do.
    pub fn complete(&mut self, request: Request) -> &Outcome {
        let id = self.submit(request);
        self.finish();
        &self.outcomes[&id]
    }

    /// Checks that every request got what it would have got alone, or a prefix of that if it was aborted.
    pub fn check_outcomes(&self) {
        for (id, outcome) in &self.outcomes {
            let (tokens, scores, reason) = expected(&outcome.request, &self.capacity);
            let finished = outcome.finished.as_ref().unwrap_or_else(|| panic!("{id:?} never finished"));
            assert_eq!(finished.usage.generated_tokens as usize, outcome.tokens.len());
            assert_eq!(finished.usage.prompt_tokens as usize, outcome.request.prompt.len());
            assert_eq!(finished.usage.cached_tokens, outcome.cached.unwrap_or(0));
            if finished.reason == FinishReason::Aborted {
                assert!(tokens.starts_with(&outcome.tokens) && scores.starts_with(&outcome.scores), "{id:?}");
            } else {
                assert_eq!((&outcome.tokens, &outcome.scores, &finished.reason), (&tokens, &scores, &reason), "{id:?}");
            }
        }
    }

    fn check_idle(&self) {
        let stats = self.scheduler.stats();
        assert_eq!((stats.running, stats.waiting, stats.kv_usage), (0, 0, 0.0), "something is held while idle");
    }

    fn settle(&mut self) {
        self.scheduler.audit().unwrap();
        for (id, update) in self.scheduler.take_updates() {
            self.outcomes.get_mut(&id).expect("updates are for requests submitted").take(update);
        }
    }
}
