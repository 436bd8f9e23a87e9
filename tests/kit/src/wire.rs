//! What waits for guests at the far end of a node's wire.

use std::{
    fs,
    io::Write,
    net::TcpListener,
    process::{Child, Command, Stdio},
    thread::JoinHandle,
    time::Duration,
};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::netns::{FAR_END, Host, wait_until};

/// The far end's address, and the port that files are fetched from.
pub const ADDRESS: &str = "10.11.0.1";
pub const ADDRESS_V6: &str = "fd00:11::1";
const PORT: u16 = 4000;

/// A router: DHCP for IPv4, router advertisements for IPv6.
pub struct Router {
    dnsmasq: Child,
    dir: TempDir,
}

impl Router {
    pub fn start(wire: &Host) -> Self {
        Self::start_on(wire, FAR_END)
    }

    /// Starts it on an interface.
    pub fn start_on(wire: &Host, interface: &str) -> Self {
        wire.ip(&format!("addr add {ADDRESS}/24 dev {interface}"));
        wire.ip(&format!("addr add {ADDRESS_V6}/64 dev {interface} nodad"));
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let words = format!(
            "--pdeathsig KILL prlimit --nofile=1024 dnsmasq --keep-in-foreground \
             --conf-file=/dev/null --pid-file= --leasefile-ro --port=0 --user=root \
             --log-facility=- --bind-interfaces --no-ping --interface={interface} \
             --dhcp-range=10.11.0.50,10.11.0.99,255.255.255.0,1h --enable-ra \
             --dhcp-range=fd00:11::,ra-only --ra-param=*,mtu:off,10,300"
        );
        let mut command = Command::new("setpriv");
        command.args(words.split_whitespace());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(fs::File::create(&log).unwrap());
        let dnsmasq = wire.0.run(|| Ok(command.spawn()?)).unwrap();
        wait_until("dnsmasq serves", || {
            fs::read_to_string(&log)
                .unwrap()
                .contains("router advertisement on")
        });
        Self { dnsmasq, dir }
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.dnsmasq.kill();
        let _ = self.dnsmasq.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("log"));
            eprintln!("dnsmasq: {}", log.unwrap_or_default());
        }
    }
}

/// The sum as sha256sum prints it.
pub fn sha256(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    sum.iter()
        .fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// Serves `bytes` of noise once by TCP; how a guest fetches them, and what it then prints.
pub fn serve_noise(wire: &Host, bytes: usize) -> (String, String, JoinHandle<()>) {
    let mut noise = vec![0; bytes];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for chunk in noise.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    let sum = sha256(&noise);
    let bind = || Ok(TcpListener::bind((ADDRESS, PORT))?);
    let listener = wire.0.run(bind).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream
            .set_write_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        stream.write_all(&noise).unwrap();
    });
    (
        format!("nc {ADDRESS} {PORT} </dev/null | sha256sum"),
        sum,
        server,
    )
}
