//! What was lost, by direction and phase.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

/// A packet that comes later than this is lost: a waiting QEMU keeps old ones for long.
const LATE: Duration = Duration::from_millis(250);

/// The phases of a migration, by their names, and when each begins. The last has no name.
pub type Phases = Vec<(&'static str, Instant)>;

/// One direction: when each packet was sent, and when those that arrived did.
#[derive(Default)]
pub struct Direction {
    pub sent: Vec<Instant>,
    pub arrived: BTreeMap<u32, Instant>,
}

/// Lost and sent packets by direction and phase.
pub struct Table(pub BTreeMap<String, BTreeMap<&'static str, (u32, u32)>>);

impl Table {
    /// Counts.
    pub fn new(directions: &BTreeMap<String, Direction>, phases: &Phases) -> Self {
        let count = |direction: &Direction| {
            let mut counts: BTreeMap<&'static str, (u32, u32)> = BTreeMap::new();
            for (number, sent) in (0..).zip(&direction.sent) {
                let later = phases.iter().take_while(|(_, begin)| begin <= sent);
                let Some((phase, _)) = later.last().filter(|(phase, _)| !phase.is_empty()) else {
                    continue;
                };
                let (lost, all) = counts.entry(phase).or_default();
                let in_time = |arrived: &Instant| *arrived <= *sent + LATE;
                *lost += u32::from(!direction.arrived.get(&number).is_some_and(in_time));
                *all += 1;
            }
            counts
        };
        let rows = directions
            .iter()
            .map(|(name, direction)| (name.clone(), count(direction)));
        Self(rows.collect())
    }

    /// Packets lost and sent in a phase, in one direction.
    pub fn of(&self, direction: &str, phase: &str) -> (u32, u32) {
        self.0[direction].get(phase).copied().unwrap_or_default()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (direction, phases) in &self.0 {
            write!(f, "{direction:14}")?;
            for (phase, (lost, sent)) in phases {
                write!(f, "  {phase} {lost}/{sent}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
