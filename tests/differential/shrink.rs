//! Makes a failure small: leaves out operations, then what the layers hold, as long as the same difference stays.

use super::bench::Bench;
use super::op::Call;
use super::path::P;
use super::run::{Failure, Layers, Scenario, Source, run};
use super::tree::Tree;
use std::time::{Duration, Instant};

/// The smallest scenario and failure found within `patience`.
pub fn shrink(bench: &Bench, scenario: &Scenario, failure: Failure, patience: Duration) -> (Scenario, Failure) {
    let mut state = Shrinking { bench, scenario: scenario.clone(), failure, deadline: Instant::now() + patience };
    // Looking at everything after every operation makes it matter less how many there are.
    let calls = state.failure.calls.clone();
    state.still_fails(Scenario { every: 1, ..scenario.clone() }, calls);
    state.operations();
    state.layers();
    state.operations();
    (state.scenario, state.failure)
}

struct Shrinking<'a> {
    bench: &'a Bench,
    scenario: Scenario,
    failure: Failure,
    deadline: Instant,
}

impl Shrinking<'_> {
    fn still_fails(&mut self, scenario: Scenario, calls: Vec<Call>) -> bool {
        if Instant::now() > self.deadline {
            return false;
        }
        match run(self.bench, &scenario, Source::Recorded(calls)) {
            Err(failure) if failure.sort == self.failure.sort => {
                self.scenario = scenario;
                self.failure = failure;
                true
            }
            _ => false,
        }
    }

    /// Leaves out runs of operations, ever shorter ones.
    fn operations(&mut self) {
        let mut size = self.failure.calls.len().div_ceil(2);
        while size > 0 && Instant::now() < self.deadline {
            let mut start = self.failure.calls.len();
            while start > 0 {
                start = start.saturating_sub(size);
                let mut calls = self.failure.calls.clone();
                let end = (start + size).min(calls.len());
                calls.drain(start.min(end)..end);
                self.still_fails(self.scenario.clone(), calls);
            }
            size /= 2;
        }
    }

    fn try_layers(&mut self, change: impl FnOnce(&mut Layers, &mut Vec<bool>)) -> bool {
        let mut scenario = self.scenario.clone();
        change(&mut scenario.layers, &mut scenario.names);
        self.still_fails(scenario, self.failure.calls.clone())
    }

    /// Leaves out whole layers, then what is in them, then what is special about that.
    fn layers(&mut self) {
        self.try_layers(|layers, _| layers.upper = Tree::empty());
        for index in (0..self.scenario.layers.lowers.len()).rev() {
            if self.scenario.layers.lowers.len() > 1 {
                self.try_layers(|layers, names| {
                    layers.lowers.remove(index);
                    names.remove(index);
                });
            }
        }
        for index in 0..=self.scenario.layers.lowers.len() {
            for path in self.paths(index) {
                if layer(&mut self.scenario.layers, index).nodes.contains_key(&path) {
                    self.try_layers(|layers, _| layer(layers, index).cut(&path));
                }
            }
            for path in self.paths(index) {
                self.try_layers(|layers, _| {
                    if let Some(node) = layer(layers, index).nodes.get_mut(&path) {
                        // But for what says where the data is.
                        node.xattrs.retain(|name, _| name.as_bytes().starts_with(b"trusted.overlay."));
                    }
                });
            }
        }
    }

    /// The paths of a layer that may be left out.
    fn paths(&mut self, index: usize) -> Vec<P> {
        let tree = layer(&mut self.scenario.layers, index);
        tree.nodes.keys().filter(|path| !path.is_empty()).cloned().collect()
    }
}

/// The upper layer as the first, then the lower ones.
fn layer(layers: &mut Layers, index: usize) -> &mut Tree {
    match index {
        0 => &mut layers.upper,
        _ => &mut layers.lowers[index - 1],
    }
}
