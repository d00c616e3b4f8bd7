//! A figure over time that changes in steps: what a link carries, or what of that is still free.
//!
//! Pure. What is taken is given back exactly, so it may be taken before it is known for how long.

/// From each moment on, until the next, that figure. There always is a first one.
#[derive(Clone, Debug, PartialEq)]
pub struct Steps {
    /// Moments, ascending.
    at: Vec<f64>,
    /// The figures from there on.
    value: Vec<f64>,
}

impl Steps {
    /// The same at all times from `from` on.
    #[must_use]
    pub fn constant(from: f64, value: f64) -> Self {
        Self {
            at: vec![from],
            value: vec![value],
        }
    }

    /// From then on that; later than all that was said.
    pub fn then(&mut self, from: f64, value: f64) {
        if self.at.last().is_some_and(|last| *last >= from) {
            if let Some(last) = self.value.last_mut() {
                *last = value;
            }
        } else if self.value.last() != Some(&value) {
            self.at.push(from);
            self.value.push(value);
        }
    }

    /// All figures times that.
    #[must_use]
    pub fn scaled(&self, by: f64) -> Self {
        let value = self.value.iter().map(|value| value * by).collect();
        let at = self.at.clone();
        Self { at, value }
    }

    /// The step that a moment falls into.
    fn step(&self, moment: f64) -> usize {
        self.at.partition_point(|at| *at <= moment).max(1) - 1
    }

    /// The figure at a moment, and until when it holds.
    #[must_use]
    pub fn at(&self, moment: f64) -> (f64, f64) {
        let step = self.step(moment);
        let until = self.at.get(step + 1).copied().unwrap_or(f64::INFINITY);
        (self.value[step], until)
    }

    /// The same for one who asks about moments one after another: `near` is the step that the last one fell into.
    #[must_use]
    pub fn after(&self, moment: f64, near: &mut usize) -> (f64, f64) {
        let behind = self.at.get(*near).is_none_or(|at| *at > moment);
        if behind {
            *near = self.step(moment);
        }
        while self.at.get(*near + 1).is_some_and(|at| *at <= moment) {
            *near += 1;
        }
        let until = self.at.get(*near + 1).copied().unwrap_or(f64::INFINITY);
        (self.value[*near], until)
    }

    /// Add to the figures from one moment to another.
    pub fn add(&mut self, (from, to): (f64, f64), value: f64) {
        if from >= to || value == 0.0 {
            return;
        }
        let first = self.cut(from);
        let last = if to.is_finite() {
            self.cut(to)
        } else {
            self.at.len()
        };
        for figure in &mut self.value[first..last] {
            *figure += value;
        }
    }

    /// The step that begins at a moment, made if there is none.
    fn cut(&mut self, moment: f64) -> usize {
        let step = self.step(moment);
        if self.at[step] >= moment {
            return step;
        }
        self.at.insert(step + 1, moment);
        self.value.insert(step + 1, self.value[step]);
        step + 1
    }

    /// The least figure from one moment to another.
    #[must_use]
    pub fn least(&self, (from, to): (f64, f64)) -> f64 {
        let (first, last) = (self.step(from), self.step(to));
        let last = if self.at[last] >= to && last > first {
            last - 1
        } else {
            last
        };
        let values = &self.value[first..=last];
        values.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The greatest figure of all.
    #[must_use]
    pub fn greatest(&self) -> f64 {
        self.value.iter().copied().fold(0.0, f64::max)
    }

    /// The figures between two moments, added up over time; what is below zero counts as nothing.
    #[must_use]
    pub fn sum(&self, (from, to): (f64, f64)) -> f64 {
        let (mut moment, mut sum) = (from, 0.0);
        while moment < to {
            let (value, until) = self.at(moment);
            let until = until.min(to);
            sum += value.max(0.0) * (until - moment);
            moment = until;
        }
        sum
    }
}
