//! A stand-in for the API server, for the real kubectl: it keeps objects in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use kit::http::{self, Request, Response};
use serde_json::{Value, json};

/// The kinds that there are: group, version, plural, kind, and whether it is in namespaces.
const KINDS: [(&str, &str, &str, &str, bool); 12] = [
    ("", "v1", "namespaces", "Namespace", false),
    ("", "v1", "configmaps", "ConfigMap", true),
    ("", "v1", "pods", "Pod", true),
    ("", "v1", "serviceaccounts", "ServiceAccount", true),
    ("", "v1", "resourcequotas", "ResourceQuota", true),
    ("apps", "v1", "daemonsets", "DaemonSet", true),
    (RBAC, "v1", "roles", "Role", true),
    (RBAC, "v1", "rolebindings", "RoleBinding", true),
    (MONITORING, "v1", "podmonitors", "PodMonitor", true),
    (MONITORING, "v1", "prometheusrules", "PrometheusRule", true),
    (
        SECURITY,
        "v1",
        "securitycontextconstraints",
        "SecurityContextConstraints",
        false,
    ),
    (
        "k8s.cni.cncf.io",
        "v1",
        "network-attachment-definitions",
        "NetworkAttachmentDefinition",
        true,
    ),
];
const RBAC: &str = "rbac.authorization.k8s.io";
const MONITORING: &str = "monitoring.coreos.com";
const SECURITY: &str = "security.openshift.io";
/// An aggregated API whose server is down, as clusters have it now and then.
const DOWN: &str = "metrics.k8s.io";

/// Objects by the paths of the API.
pub type Objects = BTreeMap<String, Value>;

/// Serves these objects until the test's process ends; where.
pub fn start(objects: Arc<Mutex<Objects>>) -> SocketAddr {
    http::serve(move |request| {
        let (status, answer) = answer(&request, &mut objects.lock().unwrap());
        // A watch has nothing to report, and ends at once.
        let watch = request.query.contains("watch=true");
        Response {
            status,
            headers: vec![("Content-Type", "application/json".to_owned())],
            body: if watch {
                Vec::new()
            } else {
                answer.to_string().into()
            },
        }
    })
}

/// Where an object is.
pub fn path_of(object: &Value) -> String {
    let kind = KINDS.iter().find(|kind| object["kind"] == kind.3).unwrap();
    let name = object["metadata"]["name"].as_str().unwrap();
    let namespace = object["metadata"]["namespace"]
        .as_str()
        .unwrap_or("default");
    format!("{}/{name}", collection(*kind, namespace))
}

/// The path of the objects of a kind.
fn collection(kind: (&str, &str, &str, &str, bool), namespace: &str) -> String {
    let (group, version, plural, _, namespaced) = kind;
    let root = if group.is_empty() {
        "/api".into()
    } else {
        format!("/apis/{group}")
    };
    let within = if namespaced {
        format!("namespaces/{namespace}/")
    } else {
        String::new()
    };
    format!("{root}/{version}/{within}{plural}")
}

fn answer(request: &Request, objects: &mut Objects) -> (u16, Value) {
    let Request {
        method,
        path,
        query,
        body,
    } = request;
    if path.starts_with(&format!("/apis/{DOWN}/")) {
        return failure(503, "ServiceUnavailable", "the server is down");
    }
    if let Some(document) = discovery(path) {
        return (200, document);
    }
    let found = objects.get(path.as_str()).cloned();
    match (method.as_str(), found) {
        ("GET", Some(object)) => (200, object),
        ("GET", None) if is_collection(path) => (200, listed(path, query, objects)),
        ("POST", _) => {
            let object: Value = serde_json::from_slice(body).unwrap();
            let name = object["metadata"]["name"].as_str().unwrap();
            objects.insert(format!("{path}/{name}"), object.clone());
            (201, object)
        }
        ("PATCH", Some(mut object)) => {
            let changes: Value = serde_json::from_slice(body).unwrap();
            merge(&mut object, &changes);
            objects.insert(path.to_owned(), object.clone());
            (200, object)
        }
        ("DELETE", Some(object)) => {
            objects.remove(path);
            (200, object)
        }
        _ => failure(404, "NotFound", &format!("{method} {path}")),
    }
}

fn failure(code: u16, reason: &str, message: &str) -> (u16, Value) {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason,
        "code": code, "message": message});
    (code, status)
}

fn is_collection(path: &str) -> bool {
    KINDS
        .iter()
        .any(|kind| path.ends_with(&format!("/{}", kind.2)))
}

/// The documents by which kubectl finds out what kinds there are.
fn discovery(path: &str) -> Option<Value> {
    let groups = || {
        let groups = KINDS.map(|kind| kind.0).into_iter().chain([DOWN]);
        let groups: BTreeSet<&str> = groups.filter(|group| !group.is_empty()).collect();
        groups.into_iter().map(|group| {
            let version = json!({"groupVersion": format!("{group}/v1"), "version": "v1"});
            json!({"name": group, "versions": [version], "preferredVersion": version})
        })
    };
    let document = match path {
        "/api" => json!({"kind": "APIVersions", "versions": ["v1"]}),
        "/apis" => {
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups().collect::<Vec<_>>()})
        }
        "/version" => json!({"major": "1", "minor": "37", "gitVersion": "v1.37.1"}),
        _ => {
            let group = path.strip_suffix("/v1")?;
            let group = group
                .strip_prefix("/apis/")
                .or((group == "/api").then_some(""))?;
            let version = format!("{group}/v1").trim_start_matches('/').to_owned();
            let of_group = KINDS.iter().filter(|kind| kind.0 == group);
            let resources = of_group.map(|(_, _, plural, kind, namespaced)| {
                json!({"name": plural, "singularName": kind.to_lowercase(), "kind": kind, "namespaced": namespaced,
                    "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"]})
            });
            json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources.collect::<Vec<_>>()})
        }
    };
    Some(document)
}

/// The objects of a collection, of all namespaces if the path names none, that a query selects.
fn listed(path: &str, query: &str, objects: &Objects) -> Value {
    let kind = KINDS
        .iter()
        .find(|kind| path.ends_with(&format!("/{}", kind.2)))
        .unwrap();
    let query = query.replace("%3D", "=").replace("%2F", "/");
    let named = query
        .split_once("metadata.name=")
        .map(|(_, rest)| rest.split('&').next().unwrap());
    let labelled = query.contains("labelSelector=app.kubernetes.io/name=macvtap");
    let selected = objects.iter().filter(|(at, object)| {
        let (within, name) = at.rsplit_once('/').unwrap();
        let all = !path.contains("/namespaces/") && within.ends_with(&format!("/{}", kind.2));
        let label = &object["metadata"]["labels"]["app.kubernetes.io/name"];
        (within == path || all)
            && named.is_none_or(|named| named == name)
            && (!labelled || label == "macvtap")
    });
    let items: Vec<&Value> = selected.map(|(_, object)| object).collect();
    let (group, version, ..) = kind;
    let api = format!("{group}/{version}")
        .trim_start_matches('/')
        .to_owned();
    json!({"kind": format!("{}List", kind.3), "apiVersion": api, "metadata": {"resourceVersion": "1"}, "items": items})
}

/// A strategic merge as far as these objects need one: lists of named things by name.
fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *object = patch.clone();
        return;
    };
    for (key, value) in patch {
        let named = value
            .as_array()
            .is_some_and(|all| all.iter().any(|one| one["name"].is_string()));
        if value.is_null() {
            object.as_object_mut().unwrap().remove(key);
        } else if named {
            for one in value.as_array().unwrap() {
                let all = object[key].as_array_mut().unwrap();
                match all.iter_mut().find(|old| old["name"] == one["name"]) {
                    Some(old) => merge(old, one),
                    None => all.push(one.clone()),
                }
            }
        } else {
            merge(&mut object[key], value);
        }
    }
}
