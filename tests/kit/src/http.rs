//! A server for programs that speak HTTP/1.1 with a service that the tests stand in for.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
};

/// A request.
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: String,
    pub body: Vec<u8>,
}

/// An answer.
pub struct Response {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

/// Serves on loopback until the test's process ends; where.
pub fn serve(answer: impl Fn(Request) -> Response + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, answer) = (listener.local_addr().unwrap(), Arc::new(answer));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let answer = Arc::clone(&answer);
            thread::spawn(move || {
                let mut stream = stream.unwrap();
                if let Some(request) = read(&stream) {
                    write(&mut stream, &answer(request));
                }
            });
        }
    });
    address
}

/// One request; none if the client has gone.
fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let first = line(&mut reader);
    let mut words = first.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (mut length, mut chunked) = (0, false);
    loop {
        let header = line(&mut reader).to_lowercase();
        match header.split_once(':') {
            None => break,
            Some(("content-length", value)) => length = value.trim().parse().unwrap(),
            Some(("transfer-encoding", value)) => chunked = value.trim() == "chunked",
            Some(("expect", _)) => {
                let mut stream = stream;
                let _ = stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            Some(_) => {}
        }
    }
    let body = if chunked {
        chunks(&mut reader)
    } else {
        exactly(&mut reader, length)
    };
    Some(Request {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        body,
    })
}

fn line(reader: &mut impl BufRead) -> String {
    let mut line = String::new();
    // What cannot be read is empty, like the end.
    let _ = reader.read_line(&mut line);
    line.trim_end().to_owned()
}

fn exactly(reader: &mut impl Read, length: usize) -> Vec<u8> {
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    body
}

fn chunks(reader: &mut impl BufRead) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let length = usize::from_str_radix(&line(reader), 16).unwrap();
        body.extend(exactly(reader, length));
        line(reader);
        if length == 0 {
            return body;
        }
    }
}

fn write(stream: &mut TcpStream, response: &Response) {
    let first = format!("HTTP/1.1 {} -\r\nConnection: close\r\n", response.status);
    let length = ("Content-Length", response.body.len().to_string());
    let own = response.headers.iter().all(|(name, _)| *name != length.0);
    let headers = response.headers.iter().chain(own.then_some(&length));
    let headers: Vec<String> = headers
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    // A client that does not wait for it is no failure.
    let _ = stream.write_all((first + &headers.concat() + "\r\n").as_bytes());
    let _ = stream.write_all(&response.body);
}
