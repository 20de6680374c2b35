//! Where a key lies in etcd.
//!
//! Keys are laid out as upstream lays them out already, but for the two kinds that are served by servers of their own there, whose
//! group is part of the key. A database of SQLite keeps them where they are; here they are where a stock kube-apiserver looks.

use std::borrow::Cow;

/// Here, and in etcd.
const MOVED: [(&str, &str); 2] = [
    ("/registry/customresourcedefinitions/", "/registry/apiextensions.k8s.io/customresourcedefinitions/"),
    ("/registry/apiservices/", "/registry/apiregistration.k8s.io/apiservices/"),
];

pub(super) fn to_etcd(key: &str) -> Cow<'_, str> {
    moved(key, MOVED.iter().map(|(here, there)| (*here, *there)))
}

pub(super) fn from_etcd(key: &str) -> Cow<'_, str> {
    moved(key, MOVED.iter().map(|(here, there)| (*there, *here)))
}

fn moved<'k>(key: &'k str, mut table: impl Iterator<Item = (&'static str, &'static str)>) -> Cow<'k, str> {
    let found = table.find_map(|(from, to)| Some((key.strip_prefix(from)?, to)));
    found.map_or(Cow::Borrowed(key), |(rest, to)| Cow::Owned(format!("{to}{rest}")))
}

/// The end of the range of all keys that start with a prefix.
pub(super) fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.last_mut() {
        if *last < u8::MAX {
            *last += 1;
            return end;
        }
        end.pop();
    }
    // All keys.
    vec![0]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use skiff_api::Kinds;

    use super::*;

    #[test]
    fn what_has_a_server_of_its_own_upstream_lies_under_its_group() {
        for (here, there) in [
            ("/registry/pods/a/b", "/registry/pods/a/b"),
            ("/registry/services/specs/a/b", "/registry/services/specs/a/b"),
            (
                "/registry/customresourcedefinitions/x.y",
                "/registry/apiextensions.k8s.io/customresourcedefinitions/x.y",
            ),
            ("/registry/apiservices/v1.apps", "/registry/apiregistration.k8s.io/apiservices/v1.apps"),
        ] {
            assert_eq!((&*to_etcd(here), &*from_etcd(there)), (there, here));
        }
    }

    #[test]
    fn no_kind_lies_where_another_is_moved_to() {
        let kinds = Kinds::builtin();
        let there: std::collections::HashSet<String> =
            kinds.stored().iter().map(|kind| to_etcd(&kind.prefix(None)).into_owned()).collect();
        assert_eq!(there.len(), kinds.stored().len());
    }

    #[test]
    fn the_end_of_a_prefix_is_behind_all_that_start_with_it() {
        assert_eq!(end_of(b"/a/"), b"/a0");
        assert_eq!(end_of(b"a\xff\xff"), b"b");
        assert_eq!(end_of(b"\xff"), b"\0");
        assert_eq!(end_of(b""), b"\0");
    }

    proptest! {
        #[test]
        fn a_key_comes_back_as_it_was(folder in 0..MOVED.len(), rest in "[a-z./]{0,12}", own in "/registry/[a-z]{1,8}/[a-z]{1,8}") {
            let moved = format!("{}{rest}", MOVED[folder].0);
            for key in [moved, own] {
                let there = to_etcd(&key);
                prop_assert_eq!(&*from_etcd(&there), &key);
            }
        }
    }
}
