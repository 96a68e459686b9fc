//! Samples, their medians, and tables of them.

use std::time::Duration;

/// What was measured of one thing, in the order of the rounds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// Adds a time, kept in milliseconds.
    pub(crate) fn time(&mut self, span: Duration) {
        self.value(span.as_secs_f64() * 1000.0);
    }

    /// Adds a value in the table's unit.
    pub(crate) fn value(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The value that `share` (0 to 1) of the samples do not exceed; the nearest rank.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        // a rank among a few hundred samples
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted
            .get(rank.clamp(1, sorted.len().max(1)) - 1)
            .copied()
            .unwrap_or(f64::NAN)
    }

    /// The median; of an even count the lower one.
    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// What it is more than `base`, round by round.
    pub(crate) fn difference(&self, base: &Self) -> Self {
        Self(self.0.iter().zip(&base.0).map(|(a, b)| a - b).collect())
    }

    /// The ratio to `base`, round by round: what moves both sides of a round cancels out.
    pub(crate) fn ratio(&self, base: &Self) -> Self {
        Self(self.0.iter().zip(&base.0).map(|(a, b)| a / b).collect())
    }
}

/// A table that prints a row at once.
#[derive(Debug)]
pub(crate) struct Table {
    columns: usize,
}

const FIRST: usize = 46;
const OTHER: usize = 13;

impl Table {
    /// Prints the heading.
    pub(crate) fn new(title: &str, columns: &[&str]) -> Self {
        let mut line = format!("{title:<FIRST$}");
        for column in columns {
            line += &format!("{column:>OTHER$}");
        }
        println!("\n{line}\n{}", "-".repeat(FIRST + OTHER * columns.len()));
        Self {
            columns: columns.len(),
        }
    }

    /// A row of words.
    pub(crate) fn words(&self, name: &str, words: &[String]) {
        let mut line = format!("{name:<FIRST$}");
        for word in words.iter().take(self.columns) {
            line += &format!("{word:>OTHER$}");
        }
        println!("{}", line.trim_end());
    }

    /// A row of times: median, least and most, and what else there is.
    pub(crate) fn spread(&self, name: &str, samples: &Samples, more: &[String]) {
        let mut words = vec![
            number(samples.median()),
            number(samples.quantile(0.0)),
            number(samples.quantile(1.0)),
        ];
        words.extend_from_slice(more);
        self.words(name, &words);
    }
}

/// What parts took, in the order in which they were told first.
#[derive(Default)]
pub(crate) struct Parts(Vec<(String, Samples)>);

impl Parts {
    pub(crate) fn note(&mut self, name: &str, took: Duration) {
        if let Some((_, samples)) = self.0.iter_mut().find(|(known, _)| known == name) {
            samples.time(took);
            return;
        }
        let mut samples = Samples::default();
        samples.time(took);
        self.0.push((name.to_owned(), samples));
    }

    pub(crate) fn print(&self, what: &str) {
        let title = format!("where the time goes, {what}, ms");
        let table = Table::new(&title, &["median", "least", "most"]);
        for (name, samples) in &self.0 {
            table.spread(name, samples, &[]);
        }
    }
}

/// A number with as many digits as it deserves.
pub(crate) fn number(value: f64) -> String {
    if value.abs() < 100.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.0}")
    }
}

/// A share of a whole, in percent.
pub(crate) fn percent(part: f64, whole: f64) -> String {
    format!("{:.1} %", 100.0 * part / whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_ranks() {
        let samples = Samples((1..=200).rev().map(f64::from).collect());
        assert_eq!(samples.median(), 100.0);
        assert_eq!(samples.quantile(0.95), 190.0);
        assert_eq!(samples.quantile(0.0), 1.0);
        assert_eq!(samples.quantile(1.0), 200.0);
        assert_eq!(samples.ratio(&samples).median(), 1.0);
        assert!(Samples::default().median().is_nan());
    }
}
