//! The name of a resource, without its namespace.

use anyhow::{Result, ensure};

/// Whether the kubelet takes `name` as the second part of a resource's name
/// (`IsQualifiedName` in `k8s.io/apimachinery`).
pub fn check(name: &str) -> Result<()> {
    let ends = [name.bytes().next(), name.bytes().last()];
    let proper_ends = ends
        .iter()
        .all(|byte| byte.is_some_and(|byte| byte.is_ascii_alphanumeric()));
    let proper = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    ensure!(
        proper && proper_ends && name.len() <= 63,
        "the kubelet refuses the name {name:?}: it takes 1 to 63 letters, digits, \
         '-', '_' and '.', of which the first and the last are a letter or digit"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_by_the_kubelets_rule() {
        for name in ["eth0", "eth0.100", "br-ex", "a", "A_b", &"x".repeat(63)] {
            assert!(check(name).is_ok(), "{name}");
        }
        for name in [
            "",
            "-a",
            "a-",
            "a.",
            "a b",
            "a/b",
            "a~",
            "é",
            &"x".repeat(64),
        ] {
            assert!(check(name).is_err(), "{name}");
        }
    }
}
