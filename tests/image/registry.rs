//! A stand-in for a registry: it takes what is pushed, and holds digests to contents.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use kit::http::{self, Request, Response};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Contents by paths.
type Contents = BTreeMap<String, Vec<u8>>;

pub struct Registry {
    pub address: SocketAddr,
    contents: Arc<Mutex<Contents>>,
}

impl Registry {
    pub fn start() -> Self {
        let contents = Arc::new(Mutex::new(Contents::new()));
        let kept = Arc::clone(&contents);
        let address = http::serve(move |request| answer(&request, &mut kept.lock().unwrap()));
        Self { address, contents }
    }

    /// What was pushed with a tag.
    pub fn manifest(&self, repository: &str, tag: &str) -> Value {
        let contents = self.contents.lock().unwrap();
        let path = format!("/v2/{repository}/manifests/{tag}");
        let found = contents.get(&path).expect("it was pushed");
        serde_json::from_slice(found).unwrap()
    }

    /// Whether all that a manifest or an index names was pushed.
    pub fn is_complete(&self, repository: &str, manifest: &Value) -> bool {
        let has = |kind: &str, part: &Value| {
            let digest = part["digest"].as_str().unwrap();
            let path = format!("/v2/{repository}/{kind}/{digest}");
            self.contents.lock().unwrap().contains_key(&path)
        };
        let parts = |key: &str| manifest[key].as_array().cloned().unwrap_or_default();
        parts("layers").iter().all(|part| has("blobs", part))
            && parts("manifests").iter().all(|part| has("manifests", part))
            && (manifest["config"].is_null() || has("blobs", &manifest["config"]))
    }
}

fn response(status: u16, name: &'static str, value: String) -> Response {
    let headers = vec![(name, value)];
    Response {
        status,
        headers,
        body: Vec::new(),
    }
}

fn digest(content: &[u8]) -> String {
    let octets: Vec<String> = Sha256::digest(content)
        .iter()
        .map(|octet| format!("{octet:02x}"))
        .collect();
    format!("sha256:{}", octets.concat())
}

/// Ends an upload, whose content has to have the digest that the client names.
fn finish(request: &Request, contents: &mut Contents) -> Response {
    let mut content = contents.remove(&request.path).unwrap_or_default();
    content.extend(&request.body);
    let (_, named) = request.query.split_once("digest=").unwrap();
    let named = named.replace("%3A", ":");
    let status = if named == digest(&content) { 201 } else { 400 };
    let repository = request.path.split("/blobs/").next().unwrap();
    contents.insert(format!("{repository}/blobs/{named}"), content);
    response(status, "Docker-Content-Digest", named)
}

/// As the distribution specification has it, as far as a push needs it.
fn answer(request: &Request, contents: &mut Contents) -> Response {
    let Request {
        method,
        path,
        query: _,
        body,
    } = request;
    match method.as_str() {
        "GET" if path == "/v2/" => response(
            200,
            "Docker-Distribution-Api-Version",
            "registry/2.0".into(),
        ),
        "HEAD" | "GET" => match contents.get(path) {
            Some(found) => response(200, "Docker-Content-Digest", digest(found)),
            None => response(404, "Content-Type", "application/json".into()),
        },
        "POST" => response(202, "Location", format!("{path}{}", contents.len())),
        "PATCH" => {
            contents.entry(path.clone()).or_default().extend(body);
            response(202, "Location", path.clone())
        }
        "PUT" if path.contains("/blobs/") => finish(request, contents),
        "PUT" => {
            let (collection, _) = path.rsplit_once('/').unwrap();
            contents.insert(path.clone(), body.clone());
            contents.insert(format!("{collection}/{}", digest(body)), body.clone());
            response(201, "Docker-Content-Digest", digest(body))
        }
        _ => response(405, "Allow", "GET".into()),
    }
}
