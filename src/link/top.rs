//! `link top`: the traffic of each macvtap, the busiest first.

use std::{
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{
    listing::{Listing, MacvtapEntry},
    pods,
    screen::{Screen, draw},
    table::Table,
    terminal::{timestamp, width},
    traffic::{self, COLUMNS, Traffic},
};
use crate::{cli, host::stdout::print, macvtap::inventory::Inventory, types::plural::count};

/// One update, as it is printed as JSON.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Update {
    /// When it was measured.
    pub time: String,
    /// The traffic of each macvtap.
    pub macvtaps: Vec<Traffic>,
}

/// Shows the traffic of each interval, as often as the options say or until the user ends it.
pub fn top(options: &cli::Top) -> Result<()> {
    let display = Display::open(options.json)?;
    let interval = Duration::from_secs_f64(options.interval);
    let mut before = (Instant::now(), macvtaps(&options.kubelet_dir)?);
    let mut updates = 0;
    while options.count.is_none_or(|count| updates < count) && display.wait(interval)? {
        let now = (Instant::now(), macvtaps(&options.kubelet_dir)?);
        let seconds = (now.0 - before.0).as_secs_f64();
        let update = Update {
            time: timestamp(),
            macvtaps: traffic::between(&before.1, &now.1, seconds),
        };
        display.show(&update, &table(&update), update.macvtaps.len())?;
        before = now;
        updates += 1;
    }
    Ok(())
}

fn macvtaps(kubelet_dir: &Path) -> Result<Vec<MacvtapEntry>> {
    let mut inventory = Inventory::new()?;
    pods::find(&mut inventory, kubelet_dir);
    Ok(Listing::from(&inventory).macvtaps)
}

/// Where updates go.
pub enum Display {
    Screen(Screen),
    /// One table after the other.
    Tables,
    /// One line for each update.
    Json,
}

impl Display {
    /// The screen if there is one, else standard output.
    pub fn open(json: bool) -> Result<Self> {
        if json {
            return Ok(Self::Json);
        }
        let Some(screen) = Screen::open()? else {
            return Ok(Self::Tables);
        };
        draw("Measuring. Press q to quit.")?;
        Ok(Self::Screen(screen))
    }

    /// Waits for so long; false if the user ends it meanwhile.
    pub fn wait(&self, time: Duration) -> Result<bool> {
        match self {
            Self::Screen(screen) => screen.wait(time),
            Self::Tables | Self::Json => {
                sleep(time);
                Ok(true)
            }
        }
    }

    /// Shows an update, which has a table of so many macvtaps.
    pub fn show(&self, update: &impl Serialize, table: &Table, macvtaps: usize) -> Result<()> {
        let head = format!("{}  {}", timestamp(), count(macvtaps, "macvtap"));
        let table = table.fit(width()).text();
        match self {
            Self::Screen(_) => draw(&format!("{head}  (q to quit)\n\n{table}")),
            Self::Tables => print(&format!("{head}\n{table}")),
            Self::Json => print(&format!("{}\n", serde_json::to_string(update)?)),
        }
    }
}

fn table(update: &Update) -> Table {
    let mut table = Table::new(&COLUMNS);
    for traffic in &update.macvtaps {
        table.row(&traffic.row());
    }
    table
}
