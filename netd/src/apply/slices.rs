// SPDX-License-Identifier: Apache-2.0
//! EndpointSlices into the store. One name is one slice, as in Kubernetes, although the key carries the Service, too, which may
//! change with a label.

use std::collections::{BTreeMap, BTreeSet};

use lb::EndpointSlice;
use netd_api::{ApiError, ApplyAction};
use netd_store::records::encode;
use netd_store::{Key, KeyValue, Keys, MirrorState, Store, StoreError, Transaction};

use super::{TRIES, Written, store_error};

/// Writes a slice, and deletes it under any other Service. `mirror` is what the store held a moment ago, where that is known; a
/// write that finds it behind asks the store. What it does not find is for [`settle`].
pub(super) async fn put(
    store: &dyn Store,
    keys: &Keys,
    mirror: Option<&MirrorState>,
    slice: &EndpointSlice,
) -> Result<Written, ApiError> {
    let object = slice.display_name();
    let service = slice.service_name().ok_or_else(|| {
        ApiError::invalid(format!("{object}: metadata.labels: {} is needed", lb::LABEL_SERVICE_NAME))
    })?;
    let (namespace, name) = (&slice.metadata.namespace, &slice.metadata.name);
    if is_kept_for_nodes(name) {
        return Err(ApiError::invalid(format!(
            "{object}: metadata.name: a UUID, also with -v6 or a number behind it, is the name of a node's own slice"
        )));
    }
    let key = keys.endpoint(namespace, service, name);
    let value = encode(&key, slice).map_err(|e| ApiError::invalid(e.to_string()))?;
    for attempt in 0..TRIES {
        let mirror = mirror.filter(|_| attempt == 0);
        let found = match mirror {
            Some(mirror) => of_mirror(mirror, keys, namespace, name),
            None => of_store(store, keys, namespace, name).await?,
        };
        if let [only] = found.as_slice()
            && only.key == key
            && only.value == value
        {
            // "Unchanged" writes nothing, so nothing would notice a mirror that is behind: ask the store.
            let asked = if mirror.is_some() { store.get(&key).await.map_err(store_error)? } else { None };
            if mirror.is_none() || asked.is_some_and(|item| item.mod_revision == only.mod_revision) {
                return Ok((ApplyAction::Unchanged, only.mod_revision, None));
            }
            continue;
        }
        let seen = found.iter().find(|item| item.key == key).map_or(0, |item| item.mod_revision);
        let mut write = Transaction::new().unchanged(&key, seen).put(&key, value.clone());
        for other in found.iter().filter(|other| other.key != key) {
            write = write.unchanged(&other.key, other.mod_revision).delete(&other.key);
        }
        let done = store.transact(write).await.map_err(store_error)?;
        if done.succeeded {
            let action = if found.is_empty() { ApplyAction::Created } else { ApplyAction::Configured };
            return Ok((action, done.revision, None));
        }
    }
    Err(ApiError::retry(format!("{object} is being changed by somebody else; try again")))
}

/// Namespaces and names of slices.
pub(super) type Names = BTreeSet<(String, String)>;

/// Deletes what else there is of slices that were written a moment ago, under other Services, and that [`put`] could not see: its
/// mirror was behind, or somebody else wrote the same name meanwhile. What was written last stays, whoever looks. `mirror` has
/// all of these writes; without it the store is asked, once for all.
pub(super) async fn settle(
    store: &dyn Store,
    keys: &Keys,
    mirror: Option<&MirrorState>,
    written: &Names,
) -> Result<(), StoreError> {
    let names: BTreeSet<&str> = written.iter().map(|(_, name)| name.as_str()).collect();
    let is_named = |item: &&KeyValue| names.contains(item.key.rsplit('/').next().unwrap_or_default());
    let prefix = keys.endpoints();
    let found: Vec<KeyValue> = match mirror {
        Some(mirror) => mirror.range(&prefix).filter(is_named).cloned().collect(),
        None => store.list(&prefix).await?.items.into_iter().filter(|item| is_named(&item)).collect(),
    };
    let mut alike: BTreeMap<(String, String), Vec<KeyValue>> = BTreeMap::new();
    for item in found {
        if let Some(Key::Endpoint { namespace, source, .. }) = keys.parse(&item.key) {
            alike.entry((namespace, source)).or_default().push(item);
        }
    }
    for (_, mut items) in alike.into_iter().filter(|(name, items)| written.contains(name) && items.len() > 1)
    {
        items.sort_by_key(|item| item.mod_revision);
        items.pop();
        // Who changed one meanwhile looks as well.
        let delete = items.iter().fold(Transaction::new(), |delete, item| {
            delete.unchanged(&item.key, item.mod_revision).delete(&item.key)
        });
        store.transact(delete).await?;
    }
    Ok(())
}

/// Deletes a slice, under whatever Services it is; returns the revision at which it went, `None` where there was none. The store
/// is asked: what a mirror that is behind does not show would stay.
pub(super) async fn delete(
    store: &dyn Store,
    keys: &Keys,
    namespace: &str,
    name: &str,
) -> Result<Option<u64>, ApiError> {
    let found = of_store(store, keys, namespace, name).await?;
    if found.is_empty() {
        return Ok(None);
    }
    let delete = found.iter().fold(Transaction::new(), |delete, item| delete.delete(&item.key));
    Ok(Some(store.transact(delete).await.map_err(store_error)?.revision))
}

fn of_mirror(mirror: &MirrorState, keys: &Keys, namespace: &str, name: &str) -> Vec<KeyValue> {
    let prefix = keys.endpoints();
    let found = mirror.range(&prefix).filter(|item| is_slice(keys, &item.key, namespace, name));
    found.cloned().collect()
}

async fn of_store(
    store: &dyn Store,
    keys: &Keys,
    namespace: &str,
    name: &str,
) -> Result<Vec<KeyValue>, ApiError> {
    let listing = store.list(&keys.endpoints()).await.map_err(store_error)?;
    Ok(listing.items.into_iter().filter(|item| is_slice(keys, &item.key, namespace, name)).collect())
}

fn is_slice(keys: &Keys, key: &str, namespace: &str, name: &str) -> bool {
    if !key.ends_with(name) {
        return false;
    }
    match keys.parse(key) {
        Some(Key::Endpoint { namespace: ns, source, .. }) => ns == namespace && source == name,
        _ => false,
    }
}

/// A slice of a node's own pods is that node's to write ([`Keys::node_of_source`]): no name that is applied may be one.
fn is_kept_for_nodes(name: &str) -> bool {
    Keys::node_of_source(&name.to_ascii_lowercase()).is_some() || uuid::Uuid::parse_str(name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use netd_store::Memory;

    #[test]
    fn names_of_nodes_own_slices_are_kept_for_them() {
        let node = uuid::Uuid::from_u128(7);
        for (ipv6, number) in [(false, 1), (true, 1), (false, 2), (true, 13)] {
            assert!(is_kept_for_nodes(&Keys::node_source(node, ipv6, number)));
        }
        assert!(is_kept_for_nodes(&node.simple().to_string()));
        assert!(!is_kept_for_nodes("web") && !is_kept_for_nodes("web-v6"));
    }

    fn slice(service: &str) -> EndpointSlice {
        let mut slice = EndpointSlice::default();
        slice.metadata.namespace = "default".to_owned();
        slice.metadata.name = "web-1".to_owned();
        slice.metadata.labels = [(lb::LABEL_SERVICE_NAME.to_owned(), service.to_owned())].into();
        slice
    }

    #[tokio::test]
    async fn a_slice_that_goes_to_another_service_leaves_the_one_that_it_was_of() {
        let (store, keys) = (Memory::new(), Keys::new("weft").unwrap());
        let present = async || -> Vec<String> {
            let listing = store.list(&keys.endpoints()).await.unwrap();
            listing.items.into_iter().map(|item| item.key).collect()
        };
        let of = |service: &str| keys.endpoint("default", service, "web-1");
        let behind = MirrorState::default();
        assert_eq!(put(&store, &keys, None, &slice("web")).await.unwrap().0, ApplyAction::Created);
        assert_eq!(put(&store, &keys, Some(&behind), &slice("web")).await.unwrap().0, ApplyAction::Unchanged);
        assert_eq!(put(&store, &keys, None, &slice("api")).await.unwrap().0, ApplyAction::Configured);
        assert_eq!(present().await, [of("api")]);

        // As somebody left it who knew nothing of this.
        for service in ["db", "web"] {
            store.put(&of(service), bytes::Bytes::new(), None).await.unwrap();
        }
        let other = keys.endpoint("default", "web", "web-2");
        store.put(&other, bytes::Bytes::new(), None).await.unwrap();
        assert!(delete(&store, &keys, "default", "web-1").await.unwrap().is_some());
        assert_eq!(present().await, std::slice::from_ref(&other));
        assert_eq!(delete(&store, &keys, "default", "web-1").await.unwrap(), None);

        // Written by a mirror that does not show the one that is there.
        let written: Names = [("default".to_owned(), "web-1".to_owned())].into();
        for service in ["web", "api"] {
            assert_eq!(
                put(&store, &keys, Some(&behind), &slice(service)).await.unwrap().0,
                ApplyAction::Created
            );
        }
        assert_eq!(present().await, [of("api"), of("web"), other.clone()]);
        settle(&store, &keys, None, &written).await.unwrap();
        assert_eq!(present().await, [of("api"), other], "the last one stays");
    }
}
