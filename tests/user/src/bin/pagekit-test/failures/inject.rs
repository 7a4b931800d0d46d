// SPDX-License-Identifier: GPL-2.0
//! Failing allocations, and copies from and to user memory, one by one.
//!
//! The kernel counts those of one task that could fail, and has the one fail that it is told to:
//! `fail-nth` in its `Documentation/fault-injection/fault-injection.rst`.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{bail, ensure, Context, Result};
use pagekit_user::kernel::{self, Cgroup, Held, Setting};
use pagekit_user::process::Child;
use pagekit_user::PAGE;
use rustix::fs::{fcntl_add_seals, SealFlags};
use rustix::io::{self, Errno};

/// What can fail, where it is set up, and the errors that a call may give then. A new shmem file
/// says that there is no space where there is no inode.
const KINDS: [(&str, &str, &[Errno]); 3] = [
    ("slab", "failslab", &[Errno::NOMEM, Errno::NOSPC]),
    ("page", "fail_page_alloc", &[Errno::NOMEM]),
    ("usercopy", "fail_usercopy", &[Errno::FAULT]),
];
const DEBUG: &str = "/sys/kernel/debug";
/// Each of `KINDS` counts down from there.
const TIMES: &str = "1000000";
/// By default only what may not sleep fails, and of pages only what is contiguous.
const SETTINGS: [(&str, &str); 10] = [
    ("failslab/ignore-gfp-wait", "N"),
    ("fail_page_alloc/ignore-gfp-wait", "N"),
    ("fail_page_alloc/ignore-gfp-highmem", "N"),
    ("fail_page_alloc/min-order", "0"),
    ("failslab/times", TIMES),
    ("fail_page_alloc/times", TIMES),
    ("fail_usercopy/times", TIMES),
    ("failslab/verbose", "0"),
    ("fail_page_alloc/verbose", "0"),
    ("fail_usercopy/verbose", "0"),
];
/// Pages that a thread wants which has asked for them to fail.
const NO_PAGES: [(&str, &str); 6] = [
    ("ignore-gfp-wait", "N"),
    ("ignore-gfp-highmem", "N"),
    ("min-order", "0"),
    ("times", "-1"),
    ("verbose", "0"),
    ("task-filter", "Y"),
];
/// What each CPU charges ahead.
const SLACK: i64 = 256 * PAGE as i64;
/// No call has as many points of failure.
const TOO_MANY: usize = 5000;

struct Injector {
    nth: File,
    _settings: Vec<Setting>,
}

impl Injector {
    fn new() -> Result<Self> {
        let set = |(path, value)| Setting::set(format!("{DEBUG}/{path}"), value);
        let injector = Self {
            nth: File::options()
                .write(true)
                .open("/proc/thread-self/fail-nth")?,
            _settings: SETTINGS.into_iter().map(set).collect::<Result<_>>()?,
        };
        let (failed, result) = injector.run(1, || File::open("/dev/null"))?;
        ensure!(failed.is_some() && result.is_err(), "nothing fails");
        Ok(injector)
    }

    /// Makes the `nth` of what can fail in `call` do so. Returns which of `KINDS` that was, if
    /// there were as many.
    fn run<T>(&self, nth: usize, call: impl FnOnce() -> T) -> Result<(Option<usize>, T)> {
        let (before, text) = (Self::left()?, nth.to_string());
        self.nth.write_all_at(text.as_bytes(), 0)?;
        let value = call();
        // If `call` had one too few, it is this write that fails.
        let past = self.nth.write_at(b"0", 0).is_err();
        let after = Self::left()?;
        let failed = (0..KINDS.len()).find(|&kind| after[kind] != before[kind]);
        Ok((failed.filter(|_| !past), value))
    }

    fn left() -> Result<[String; 3]> {
        let [slab, page, usercopy] =
            KINDS.map(|(_, dir, _)| kernel::read(format!("{DEBUG}/{dir}/times")));
        Ok([slab?, page?, usercopy?])
    }
}

/// How many points of failure there were, and after how many all was well, by kind.
#[derive(Default)]
struct Points([(usize, usize); KINDS.len()]);

/// For tools/test.py, which makes a report of what is in front of a case's result.
impl Drop for Points {
    fn drop(&mut self) {
        for ((kind, ..), (points, survived)) in KINDS.iter().zip(self.0) {
            println!("# {kind}: {points} points, {survived} survived");
        }
    }
}

/// Makes `call`, with whatever `prepare` made for it, until nothing is left in it that could fail.
///
/// After each failure the call must have had the right error, nothing may be left, and the same
/// call must work. Or it copes, and has worked at once. `check` looks at what has worked.
pub fn each<S, T>(
    prepare: impl Fn() -> Result<S>,
    call: impl Fn(&S) -> io::Result<T>,
    check: impl Fn(&S, T) -> Result<()>,
) -> Result<()> {
    // Pages belong to the cgroup of who first used them, until nobody has a reference.
    let cgroup = Cgroup::new(&format!("pagekit-failures-{}", std::process::id()))?;
    Child::spawn(|| {
        cgroup.enter()?;
        let (injector, mut points) = (Injector::new()?, Points::default());
        // What is made once only is made now.
        let state = prepare()?;
        check(&state, call(&state)?)?;
        drop(state);
        for nth in 1..TOO_MANY {
            let before = Held::now()?;
            let state = prepare()?;
            let prepared = Held::now()?;
            let (failed, result) = injector.run(nth, || call(&state))?;
            let Some(kind) = failed else {
                return check(&state, result.context("without a failure")?);
            };
            let (name, _, errors) = KINDS[kind];
            points.0[kind].0 += 1;
            let survived = || -> Result<()> {
                match result {
                    Ok(value) => check(&state, value)?,
                    Err(error) => {
                        ensure!(errors.contains(&error), "{error:?}, not {errors:?}");
                        let now = Held::now()?;
                        ensure!(now == prepared, "{prepared:?} before, {now:?} after");
                        check(&state, call(&state).context("once more")?)?;
                    }
                }
                drop(state);
                let now = Held::now()?;
                ensure!(now == before, "{before:?} at first, {now:?} at last");
                Ok(())
            };
            survived().with_context(|| format!("failure {nth}, of {name}"))?;
            points.0[kind].1 += 1;
        }
        bail!("no end of failures");
    })?
    .join("child")?;
    let left = cgroup.left()?;
    ensure!(left < SLACK, "{left} bytes of pages stay charged");
    Ok(())
}

/// Makes `call` while this thread gets no page at all.
pub fn without_pages<S, T>(
    prepare: impl Fn() -> Result<S>,
    call: impl Fn(&S) -> T,
) -> Result<(S, T)> {
    let (first, state) = (prepare()?, prepare()?);
    let fails = format!("{DEBUG}/fail_page_alloc");
    let _settings = NO_PAGES
        .into_iter()
        .map(|(name, value)| Setting::set(format!("{fails}/{name}"), value))
        .collect::<Result<Vec<_>>>()?;
    // Goes first, as the others filter.
    let _always = Setting::set(format!("{fails}/probability"), "100")?;
    let switch = File::options()
        .write(true)
        .open("/proc/thread-self/make-it-fail")?;
    // The process must have its own pages by then: it would fault for ever.
    switch.write_all_at(b"0", 0)?;
    call(&first);
    switch.write_all_at(b"1", 0)?;
    let value = call(&state);
    switch.write_all_at(b"0", 0)?;
    Ok((state, value))
}

/// A file whose pages nobody may still refer to when it is dropped: else it can't be sealed.
pub struct Unshared(pub File);

impl Drop for Unshared {
    fn drop(&mut self) {
        let result = fcntl_add_seals(&self.0, SealFlags::WRITE);
        assert!(
            result.is_ok() || std::thread::panicking(),
            "references to pages stay: {result:?}"
        );
    }
}
