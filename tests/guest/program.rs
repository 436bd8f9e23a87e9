//! What the guest of the migration tests runs: `traffic SECONDS TARGET...` sends packets to
//! each target, notes what arrives, and then prints, in milliseconds since its start, when it
//! sent each packet, and when each arrived from whom.

use std::{
    env,
    net::UdpSocket,
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use kit::traffic;

fn main() {
    let mut words = env::args().skip(1);
    let seconds = words.next().and_then(|word| word.parse().ok());
    let seconds = seconds.expect("traffic SECONDS TARGET...");
    let targets: Vec<String> = words.collect();
    let socket = UdpSocket::bind("0.0.0.0:4000").expect("a socket");
    let start = Instant::now();
    let ended = || start.elapsed() > Duration::from_secs(seconds);
    let since = |time: &Instant| (*time - start).as_millis();
    scope(|scope| {
        let receiver = scope.spawn(|| traffic::receive(&socket, ended));
        let senders: Vec<_> = targets
            .iter()
            .map(|target| {
                (
                    target,
                    scope.spawn(|| traffic::send(&socket, target, ended)),
                )
            })
            .collect();
        for (target, sender) in senders {
            let sent = sender.join().expect("a sender");
            let times: Vec<String> = sent.iter().map(|time| since(time).to_string()).collect();
            println!("sent {target} {}", times.join(" "));
        }
        for (sender, numbers) in receiver.join().expect("the receiver") {
            let list = numbers
                .iter()
                .map(|(number, time)| format!("{number}:{}", since(time)));
            println!("received {sender} {}", list.collect::<Vec<_>>().join(" "));
        }
    });
    sleep(Duration::from_millis(10));
}
