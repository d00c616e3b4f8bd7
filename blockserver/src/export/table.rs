//! All exports of a server, as a client's handshake sees them.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::{Export, Mode};
use crate::nbd::{ExportInfo, ExportTable};

/// The longest read or write that is taken, in bytes: what every client may send unasked.
const MAX_PAYLOAD: u32 = 32 << 20;
/// The unit of a good request, in bytes.
const PREFERRED_BLOCK: u32 = 4096;

/// Exports by name and by number.
#[derive(Debug, Default)]
pub(crate) struct ExportIndex {
    exports: RwLock<BTreeMap<String, Arc<Export>>>,
}

impl ExportIndex {
    /// Add one; gives it back when the name is taken.
    pub(crate) fn insert(&self, export: Arc<Export>) -> Result<(), Arc<Export>> {
        let mut exports = self.exports.write().unwrap_or_else(PoisonError::into_inner);
        if exports.contains_key(&export.name) {
            return Err(export);
        }
        exports.insert(export.name.clone(), export);
        Ok(())
    }

    /// Take one out.
    pub(crate) fn remove(&self, id: u64) {
        let mut exports = self.exports.write().unwrap_or_else(PoisonError::into_inner);
        exports.retain(|_, export| export.id != id);
    }

    /// The export with this number.
    pub(crate) fn get(&self, id: u64) -> Option<Arc<Export>> {
        let exports = self.exports.read().unwrap_or_else(PoisonError::into_inner);
        exports.values().find(|export| export.id == id).cloned()
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Arc<Export>> {
        let exports = self.exports.read().unwrap_or_else(PoisonError::into_inner);
        exports.values().cloned().collect()
    }
}

impl ExportTable for ExportIndex {
    /// A single export is also the default one, under the empty name.
    fn find(&self, name: &str) -> Option<ExportInfo> {
        let exports = self.exports.read().unwrap_or_else(PoisonError::into_inner);
        let only = || {
            exports
                .values()
                .next()
                .filter(|_| name.is_empty() && exports.len() == 1)
        };
        let export = exports.get(name).or_else(only)?;
        let policy = export.policy();
        if matches!(policy.mode, Mode::Closed) {
            return None;
        }
        Some(ExportInfo {
            id: export.id,
            size: policy.disk.size(),
            read_only: export.options.read_only || policy.disk.read_only(),
            min_block: policy.disk.min_block(),
            preferred_block: PREFERRED_BLOCK,
            max_payload: MAX_PAYLOAD,
            can_multi_conn: true,
            rotational: false,
            description: export.options.description.clone(),
        })
    }

    fn names(&self) -> Vec<(String, String)> {
        let exports = self.exports.read().unwrap_or_else(PoisonError::into_inner);
        let listed = exports.values().filter(|export| export.options.listed);
        listed
            .map(|e| (e.name.clone(), e.options.description.clone()))
            .collect()
    }
}
