//! The calls of the runtime: containers that are created get the taps of their pods, and those
//! that started without are reported.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Error, Result};
use log::{error, info, warn};
use prost::Message as _;

use super::{
    api::{
        ConfigureRequest, ConfigureResponse, Container, CreateContainerRequest, PodSandbox,
        Request, StateChangeEvent, SynchronizeRequest, SynchronizeResponse,
    },
    container,
    taps::{self, TapsError},
};
use crate::{host::tap, types::status::ContainerName};

/// The status codes of ttrpc, which are those of gRPC.
pub mod code {
    /// The request makes no sense.
    pub const INVALID_ARGUMENT: i32 = 3;
    /// What was asked for cannot be done in the present state.
    pub const FAILED_PRECONDITION: i32 = 9;
    /// There is no such method. Newer runtimes then use an older one.
    pub const UNIMPLEMENTED: i32 = 12;
}

/// Events of NRI, by their numbers.
mod event {
    pub const CREATE_CONTAINER: i32 = 4;
    pub const START_CONTAINER: i32 = 6;
    pub const REMOVE_CONTAINER: i32 = 11;
}

/// What the runtime reports.
const EVENTS: [i32; 3] = [
    event::CREATE_CONTAINER,
    event::START_CONTAINER,
    event::REMOVE_CONTAINER,
];
/// The states of containers that may run: created, paused, running.
const ALIVE: std::ops::RangeInclusive<i32> = 1..=3;

/// Why a call failed: the status code, and what went wrong.
#[derive(Debug)]
pub struct CallError {
    /// The status code of ttrpc.
    pub code: i32,
    /// What went wrong.
    pub error: Error,
}

impl CallError {
    /// The error of a message that cannot be decoded.
    pub fn malformed(error: prost::DecodeError) -> Self {
        Self {
            code: code::INVALID_ARGUMENT,
            error: Error::new(error).context("decoding a request"),
        }
    }
}

/// The plugin, as the runtime sees it.
#[derive(Default)]
pub struct Service {
    /// The runtime's name and version.
    pub runtime: String,
    /// Whether the runtime has reported all containers: from then on it asks.
    pub is_synchronized: bool,
    /// How many containers got taps.
    pub given: u64,
    /// How many containers were refused.
    pub refused: u64,
    /// Containers that started without their taps, by their ID, in words.
    pub without: BTreeMap<String, String>,
    /// The taps of containers, by the container's ID.
    holding: BTreeMap<String, (ContainerName, BTreeSet<u32>)>,
    /// The pods and containers that the runtime reported so far, until they are checked.
    state: Option<SynchronizeRequest>,
    /// Containers that were asked about and have not started yet.
    asked: BTreeSet<String>,
}

impl Service {
    /// Begins anew with a runtime that has just been connected.
    pub fn begin(&mut self) {
        self.is_synchronized = false;
        self.state = None;
        self.asked.clear();
    }

    /// The containers that have taps, by the number of the tap.
    pub fn taps(&self) -> BTreeMap<u32, ContainerName> {
        let mut containers: BTreeMap<u32, ContainerName> = BTreeMap::new();
        for (name, taps) in self.holding.values() {
            for tap in taps {
                let known = containers.entry(*tap);
                let known = known.and_modify(|known| known.container.push_str(", "));
                known
                    .or_insert_with(|| ContainerName {
                        pod: name.pod.clone(),
                        container: String::new(),
                    })
                    .container
                    .push_str(&name.container);
            }
        }
        containers
    }

    /// Answers a call.
    pub fn call(&mut self, request: &Request) -> Result<Vec<u8>, CallError> {
        let payload = &request.payload[..];
        match request.method.as_str() {
            "Configure" => Ok(self.configure(&decode(payload)?)),
            "Synchronize" => Ok(self.synchronize(decode(payload)?)),
            "CreateContainer" => self.create(decode(payload)?),
            "StateChange" => {
                self.changed(decode(payload)?)?;
                Ok(Vec::new())
            }
            method => Err(CallError {
                code: code::UNIMPLEMENTED,
                error: Error::msg(format!("{method} is not implemented")),
            }),
        }
    }

    /// What is due after an answer was sent, so that the runtime does not wait for it.
    pub fn after_answer(&mut self) {
        if self.is_synchronized
            && let Some(state) = self.state.take()
        {
            self.check_all(&state);
        }
    }

    fn configure(&mut self, request: &ConfigureRequest) -> Vec<u8> {
        self.runtime = format!("{} {}", request.runtime_name, request.runtime_version);
        let events = EVENTS.iter().map(|event| 1 << (event - 1)).sum();
        ConfigureResponse { events }.encode_to_vec()
    }

    fn synchronize(&mut self, request: SynchronizeRequest) -> Vec<u8> {
        let more = request.more;
        let state = self.state.get_or_insert_default();
        state.pods.extend(request.pods);
        state.containers.extend(request.containers);
        self.is_synchronized = !more;
        if !more {
            info!(runtime = self.runtime.as_str(), pods = state.pods.len(); "NRI is ready");
        }
        SynchronizeResponse { more }.encode_to_vec()
    }

    fn create(&mut self, request: CreateContainerRequest) -> Result<Vec<u8>, CallError> {
        let pod = request.pod.unwrap_or_default();
        let container = request.container.unwrap_or_default();
        let (shown_pod, name) = (shown(&pod), container.name.as_str());
        match taps_for(&pod, &container) {
            Ok(taps) => {
                if !taps.is_empty() {
                    self.given += 1;
                    info!(pod = shown_pod, container = name, taps = paths(&taps); "taps given");
                }
                let answer = container::give(&taps).encode_to_vec();
                self.note_taps(&pod, &container, &taps);
                self.asked.insert(container.id);
                Ok(answer)
            }
            // Not noted as asked: it is looked at again before it starts.
            Err(TapsError::Unknown(error)) => {
                let text = format!("{error:#}");
                warn!(pod = shown_pod, container = name, error = text; "taps of the pod not known: container gets none");
                Ok(container::give(&[]).encode_to_vec())
            }
            Err(TapsError::OfPod(error)) => Err(self.refuse(&shown_pod, name, error)),
        }
    }

    /// Refuses a container whose taps cannot be given.
    fn refuse(&mut self, pod: &str, container: &str, error: Error) -> CallError {
        self.refused += 1;
        let text = format!("{error:#}");
        error!(pod, container, error = text; "container refused");
        CallError {
            code: code::FAILED_PRECONDITION,
            error: error.context("macvtap"),
        }
    }

    /// A container that is about to start and that the runtime did not ask about may lack its taps.
    /// An error keeps it from starting; the kubelet makes another one.
    fn changed(&mut self, event: StateChangeEvent) -> Result<(), CallError> {
        let container = event.container.unwrap_or_default();
        match event.event {
            event::START_CONTAINER if !self.asked.remove(&container.id) => {
                self.start(&event.pod.unwrap_or_default(), &container)?;
            }
            event::REMOVE_CONTAINER => {
                self.asked.remove(&container.id);
                self.without.remove(&container.id);
                self.holding.remove(&container.id);
            }
            _ => {}
        }
        Ok(())
    }

    fn start(&mut self, pod: &PodSandbox, container: &Container) -> Result<(), CallError> {
        let (pod_name, name) = (shown(pod), container.name.as_str());
        match taps_for(pod, container) {
            Ok(taps) if taps.is_empty() => Ok(()),
            Ok(taps) => {
                self.refused += 1;
                let taps = paths(&taps);
                let text = format!(
                    "container {name} of pod {pod_name} would start without {taps}: it was created \
                     without them, as while the device plugin is not connected"
                );
                error!(pod = pod_name, container = name, taps; "container not started");
                Err(CallError {
                    code: code::FAILED_PRECONDITION,
                    error: Error::msg(text).context("macvtap"),
                })
            }
            Err(TapsError::OfPod(error)) => Err(self.refuse(&pod_name, name, error)),
            Err(TapsError::Unknown(error)) => {
                let text = format!("{error:#}");
                warn!(pod = pod_name, container = name, error = text; "container not checked");
                Ok(())
            }
        }
    }

    fn check_all(&mut self, state: &SynchronizeRequest) {
        self.without.clear();
        self.holding.clear();
        let pods = state.pods.iter().map(|pod| (pod.id.as_str(), pod));
        let pods: BTreeMap<&str, &PodSandbox> = pods.collect();
        for container in &state.containers {
            let pod = pods.get(container.pod_sandbox_id.as_str());
            if let Some(pod) = pod.filter(|_| ALIVE.contains(&container.state)) {
                self.note_taps(pod, container, &[]);
                self.check(pod, container);
            }
        }
    }

    /// Notes the taps that a container has, and those that it is given.
    fn note_taps(&mut self, pod: &PodSandbox, container: &Container, given: &[container::Tap]) {
        let given = given.iter().map(|tap| tap.path.as_str());
        let numbers = container::device_paths(container).chain(given);
        let numbers = numbers.filter_map(tap::number_in);
        let numbers: BTreeSet<u32> = numbers.collect();
        if !numbers.is_empty() {
            let name = ContainerName {
                pod: shown(pod),
                container: container.name.clone(),
            };
            self.holding.insert(container.id.clone(), (name, numbers));
        }
    }

    fn check(&mut self, pod: &PodSandbox, container: &Container) {
        let (pod_name, name) = (shown(pod), container.name.as_str());
        match taps_for(pod, container) {
            Ok(taps) if taps.is_empty() => {}
            Ok(taps) => {
                let taps = paths(&taps);
                let text = format!("container {name} of pod {pod_name} runs without {taps}");
                error!(pod = pod_name, container = name, taps; "container runs without its taps");
                self.without.insert(container.id.clone(), text);
            }
            Err(TapsError::OfPod(error)) => {
                let error = format!("{error:#}");
                let text =
                    format!("container {name} of pod {pod_name} runs without its tap: {error}");
                error!(pod = pod_name, container = name, error; "container runs without its taps");
                self.without.insert(container.id.clone(), text);
            }
            Err(TapsError::Unknown(error)) => {
                let text = format!("{error:#}");
                warn!(pod = pod_name, container = name, error = text; "container not checked");
            }
        }
    }
}

/// The taps that a container has to get and does not have.
fn taps_for(pod: &PodSandbox, container: &Container) -> Result<Vec<container::Tap>, TapsError> {
    if !container::gets_taps(pod, container) {
        return Ok(Vec::new());
    }
    let Some(netns) = container::netns(pod) else {
        return Ok(Vec::new());
    };
    let taps = container::missing(container, taps::of_pod(&pod.uid, netns)?);
    if !taps.is_empty() && container::has_user_namespace(pod, container) {
        return Err(TapsError::OfPod(Error::msg(
            "a pod with a user namespace (hostUsers: false) cannot open its tap: \
             the runtime keeps the owner of the host's node, which is not mapped in the pod",
        )));
    }
    Ok(taps)
}

fn decode<T: prost::Message + Default>(payload: &[u8]) -> Result<T, CallError> {
    T::decode(payload).map_err(CallError::malformed)
}

fn shown(pod: &PodSandbox) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

fn paths(taps: &[container::Tap]) -> String {
    let paths: Vec<&str> = taps.iter().map(|tap| tap.path.as_str()).collect();
    paths.join(",")
}
