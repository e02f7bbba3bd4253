//! Questions of many to many: of each question at most one call is under way, however many ask it, and one that is late
//! is answered at once until it has come back.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use super::{Place, Unanswered};
use crate::clock::{Clock as _, SystemClock};

/// How long many questions wait for one of them before the next is asked beside it: those that are answered at once
/// take one thread after another, and those that hang one each.
const APART: Duration = Duration::from_millis(5);

/// The calls of one name that are under way, by what they ask.
#[derive(Debug)]
pub struct PerKey<K, A> {
    name: &'static str,
    calls_max: usize,
    calls: Calls<K, A>,
}

type Calls<K, A> = Arc<Mutex<BTreeMap<K, Arc<Call<A>>>>>;

/// One call, and all who wait for it.
#[derive(Debug)]
struct Call<A> {
    state: Mutex<State<A>>,
    /// For those who wait on a thread of their own.
    ended: Condvar,
    /// For tasks.
    told: Notify,
}

#[derive(Debug)]
enum State<A> {
    UnderWay {
        /// Somebody has waited for as long as one waits.
        late: bool,
    },
    Answered(A),
    /// Its thread panicked, or there was none for it.
    Lost,
}

/// Ends a call on whatever way its thread goes.
struct Ending<K: Ord, A> {
    calls: Calls<K, A>,
    key: K,
    call: Arc<Call<A>>,
    place: Option<Place>,
}

impl<K, A> PerKey<K, A>
where
    K: Ord + Clone + Send + 'static,
    A: Clone + Send + 'static,
{
    /// None yet, and at most `calls_max` at once.
    #[must_use]
    pub fn new(name: &'static str, calls_max: usize) -> Self {
        Self {
            name,
            calls_max,
            calls: Arc::default(),
        }
    }

    /// Asks `key`, or waits with whoever asks it already; at most `limit`.
    ///
    /// # Errors
    ///
    /// As for [`super::call`]. While a late call has not come back, that is said at once.
    pub async fn ask(
        &self,
        key: K,
        limit: Duration,
        work: impl FnOnce(&K) -> A + Send + 'static,
    ) -> Result<A, Unanswered> {
        let call = self.begin(key, limit, work)?;
        let answer = timeout(limit, call.answered()).await;
        answer.unwrap_or_else(|_elapsed| {
            call.is_late();
            Err(Unanswered::Late(limit))
        })
    }

    /// Asks all of `keys` on a thread that may wait, beside each other as far as they hang; `limit` is for all
    /// together.
    pub fn ask_all(
        &self,
        keys: impl IntoIterator<Item = K>,
        limit: Duration,
        work: impl Fn(&K) -> A + Clone + Send + 'static,
    ) -> BTreeMap<K, Result<A, Unanswered>> {
        let deadline = SystemClock.now().saturating_add(limit);
        let mut answers = BTreeMap::new();
        let mut waiting = Vec::new();
        for key in keys {
            match self.begin(key.clone(), limit, work.clone()) {
                Ok(call) => match call.wait(APART) {
                    Some(answer) => drop(answers.insert(key, answer)),
                    None => waiting.push((key, call)),
                },
                Err(error) => drop(answers.insert(key, Err(error))),
            }
        }
        for (key, call) in waiting {
            let left = deadline.saturating_since(SystemClock.now());
            let answer = call.wait(left).unwrap_or_else(|| {
                call.is_late();
                Err(Unanswered::Late(limit))
            });
            answers.insert(key, answer);
        }
        answers
    }

    /// The call that asks `key`: one that is under way, or a new one.
    fn begin(
        &self,
        key: K,
        limit: Duration,
        work: impl FnOnce(&K) -> A + Send + 'static,
    ) -> Result<Arc<Call<A>>, Unanswered> {
        let mut calls = lock(&self.calls);
        if let Some(call) = calls.get(&key) {
            return if matches!(*lock(&call.state), State::UnderWay { late: true }) {
                Err(Unanswered::Late(limit))
            } else {
                Ok(Arc::clone(call))
            };
        }
        let place = Place::take(self.name, self.calls_max)?;
        let call = Arc::new(Call {
            state: Mutex::new(State::UnderWay { late: false }),
            ended: Condvar::new(),
            told: Notify::new(),
        });
        let ending = Ending {
            calls: Arc::clone(&self.calls),
            key: key.clone(),
            call: Arc::clone(&call),
            place: Some(place),
        };
        calls.insert(key, Arc::clone(&call));
        // Whoever ends it takes it out again, here as well when there is no thread for it.
        drop(calls);
        thread::Builder::new()
            .name(self.name.to_owned())
            .spawn(move || {
                let answer = work(&ending.key);
                ending.answer(answer);
            })
            .map_err(Unanswered::NoThread)?;
        Ok(call)
    }
}

impl<K: Ord, A> Ending<K, A> {
    fn answer(mut self, answer: A) {
        self.leave();
        *lock(&self.call.state) = State::Answered(answer);
    }

    /// Gives its place back, before anybody hears of the answer, who may ask the next at once.
    fn leave(&mut self) {
        drop(self.place.take());
        let mut calls = lock(&self.calls);
        // Somebody may have asked the same again by now.
        let own = calls.get(&self.key);
        if own.is_some_and(|call| Arc::ptr_eq(call, &self.call)) {
            calls.remove(&self.key);
        }
    }
}

impl<K: Ord, A> Drop for Ending<K, A> {
    fn drop(&mut self) {
        self.leave();
        let mut state = lock(&self.call.state);
        if matches!(*state, State::UnderWay { .. }) {
            *state = State::Lost;
        }
        drop(state);
        self.call.ended.notify_all();
        self.call.told.notify_waiters();
    }
}

impl<A: Clone> Call<A> {
    fn answer(&self) -> Option<Result<A, Unanswered>> {
        match &*lock(&self.state) {
            State::UnderWay { .. } => None,
            State::Answered(answer) => Some(Ok(answer.clone())),
            State::Lost => Some(Err(Unanswered::Panicked)),
        }
    }

    async fn answered(&self) -> Result<A, Unanswered> {
        loop {
            let mut told = std::pin::pin!(self.told.notified());
            // Before the look, so that nothing is missed in between.
            told.as_mut().enable();
            if let Some(answer) = self.answer() {
                return answer;
            }
            told.await;
        }
    }

    fn wait(&self, limit: Duration) -> Option<Result<A, Unanswered>> {
        let under_way = |state: &mut State<A>| matches!(state, State::UnderWay { .. });
        let state = lock(&self.state);
        let waited = self.ended.wait_timeout_while(state, limit, under_way);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        self.answer()
    }

    fn is_late(&self) {
        if let State::UnderWay { late } = &mut *lock(&self.state) {
            *late = true;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);
    const AT_ONCE: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_question_that_hangs_is_asked_once_and_holds_up_no_other() {
        let asked = Arc::new(AtomicUsize::new(0));
        let questions = PerKey::new("per key", 8);
        let (release, hang) = channel::<()>();
        let count = Arc::clone(&asked);
        let late = questions.ask("a", AT_ONCE, move |_key| {
            count.fetch_add(1, Ordering::Relaxed);
            let _released = hang.recv();
        });
        assert!(matches!(late.await, Err(Unanswered::Late(_))));
        for _again in 0..20 {
            let count = Arc::clone(&asked);
            let work = move |_key: &&str| {
                count.fetch_add(1, Ordering::Relaxed);
            };
            // It would wait for far longer than this test may take.
            let again = questions.ask("a", Duration::from_secs(600), work).await;
            assert!(matches!(again, Err(Unanswered::Late(_))));
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        assert!(questions.ask("b", SOON, |_key| ()).await.is_ok());
        drop(release);
        let again = async {
            while questions.ask("a", SOON, |_key| ()).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, again).await.expect("it is asked again");
    }

    #[test]
    fn many_that_hang_take_one_limit_altogether_and_the_others_are_answered() {
        let questions = PerKey::new("all keys", 64);
        let hang = Arc::new(Mutex::new(()));
        let held = lock(&hang);
        let inside = Arc::clone(&hang);
        let before = SystemClock.now();
        let answers = questions.ask_all(0..40, Duration::from_secs(1), move |key: &i32| {
            if key % 2 == 0 {
                drop(lock(&inside));
            }
            *key
        });
        let took = SystemClock.now().saturating_since(before);
        assert!(took < Duration::from_secs(5), "{took:?}");
        for (key, answer) in answers {
            match answer {
                Ok(said) => assert!(said == key && key % 2 == 1),
                Err(error) => {
                    assert!(matches!(error, Unanswered::Late(_)), "{error}");
                    assert_eq!(key % 2, 0);
                }
            }
        }
        drop(held);
    }

    #[tokio::test]
    async fn a_place_is_free_again_when_its_answer_is_there() {
        let questions = PerKey::new("one place", 1);
        for number in 0..1_000 {
            let answer = questions.ask(number, SOON, |key| *key).await;
            assert_eq!(answer.ok(), Some(number));
        }
    }

    #[tokio::test]
    async fn those_who_ask_the_same_get_one_answer_and_a_panic_is_told_to_all() {
        let questions = PerKey::new("same key", 8);
        let (release, hang) = channel::<()>();
        let first = questions.ask(1, SOON, move |_key| {
            let _released = hang.recv();
            7
        });
        let second = async {
            let second = questions.ask(1, SOON, |_key| 8);
            drop(release);
            second.await
        };
        let (first, second) = tokio::join!(first, second);
        assert_eq!(first.ok(), Some(7));
        assert!(matches!(second, Ok(7 | 8)));
        let panicked = questions.ask(2, SOON, |_key| panic!("on purpose")).await;
        assert!(matches!(panicked, Err(Unanswered::Panicked)));
        assert_eq!(questions.ask(2, SOON, |_key| 9).await.ok(), Some(9));
    }
}
