//! Figures of rounds, their medians, and how they are told.

use serde_json::{Value, json};

/// Of one round of one subject; what a scenario does not measure is left out.
#[derive(Clone, Copy, Default)]
pub struct Figures {
    pub per_second: Option<f64>,
    /// Microseconds for each request or tunnel, or seconds for each GiB.
    pub cpu: Option<f64>,
    /// Milliseconds from the call to the receiver.
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    /// KiB for each tunnel.
    pub kib: Option<f64>,
}

/// What all scenarios found.
#[derive(Default)]
pub struct Report(Vec<Value>);

impl Report {
    /// Prints the medians of a scenario, each beside that of `base`, and keeps them.
    pub fn add(&mut self, scenario: &str, base: &str, rows: &[(String, Vec<Figures>)]) {
        println!("\n{scenario} (medians of {} rounds in turns)", rows.first().map_or(0, |(_, rounds)| rounds.len()));
        println!(
            "{:<28} {:>12} {:>10} {:>10} {:>10} {:>10} {:>10}",
            "",
            "per second",
            "CPU",
            format!("x {base}"),
            "p50 ms",
            "p99 ms",
            "KiB each"
        );
        let of =
            |rounds: &[Figures], part: fn(&Figures) -> Option<f64>| median(rounds.iter().filter_map(part).collect());
        let cpu_of_base =
            rows.iter().find(|(name, _)| name == base).and_then(|(_, rounds)| of(rounds, |round| round.cpu));
        for (name, rounds) in rows {
            let cpu = of(rounds, |round| round.cpu);
            let ratio = cpu.zip(cpu_of_base).map(|(cpu, base)| cpu / base);
            let (per_second, kib) = (of(rounds, |round| round.per_second), of(rounds, |round| round.kib));
            let (p50, p99) = (of(rounds, |round| round.p50), of(rounds, |round| round.p99));
            let told =
                |figure: Option<f64>, places: usize| figure.map_or("-".to_owned(), |it| format!("{it:.places$}"));
            println!(
                "{name:<28} {:>12} {:>10} {:>10} {:>10} {:>10} {:>10}",
                told(per_second, 0),
                told(cpu, 1),
                told(ratio, 2),
                told(p50, 2),
                told(p99, 2),
                told(kib, 1)
            );
            let all: Vec<_> = rounds.iter().filter_map(|round| round.cpu).collect();
            self.0.push(json!({
                "scenario": scenario, "subject": name, "per_second": per_second, "cpu": cpu, "cpu_rounds": all,
                "base": base, "ratio": ratio, "p50_ms": p50, "p99_ms": p99, "kib_each": kib,
            }));
        }
    }

    pub fn json(&self) -> String {
        serde_json::to_string_pretty(&json!({ "machine": crate::support::machine(), "figures": self.0 })).expect("JSON")
    }
}

fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    let upper = *figures.get(middle)?;
    Some(if figures.len() % 2 == 1 { upper } else { f64::midpoint(figures[middle - 1], upper) })
}
