// SPDX-License-Identifier: GPL-2.0
//! What tells that two places hold the same.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use anyhow::Result;
use pagekit_user::mapping::Mapping;
use sha2::{Digest, Sha256};

pub type Sum = [u8; 32];

const CHUNK: usize = 1 << 20;

/// Copies `len` bytes and returns their checksum.
pub fn copy(mut file: &File, memfd: &File, len: u64) -> Result<Sum> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    while at < len {
        let part = &mut chunk[..CHUNK.min((len - at) as usize)];
        file.read_exact(part)?;
        hash.update(&part);
        memfd.write_all_at(part, at)?;
        at += part.len() as u64;
    }
    Ok(hash.finalize().into())
}

/// The checksum of the mapping's first `len` bytes.
pub fn checksum(map: &Mapping, len: usize) -> Sum {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    for at in (0..len).step_by(CHUNK) {
        let part = &mut chunk[..CHUNK.min(len - at)];
        map.read(at, part);
        hash.update(&part);
    }
    hash.finalize().into()
}

/// The checksum of part of a file, through read().
pub fn file_checksum(file: &File, start: usize, len: usize) -> Result<Sum> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    for at in (0..len).step_by(CHUNK) {
        let part = &mut chunk[..CHUNK.min(len - at)];
        file.read_exact_at(part, (start + at) as u64)?;
        hash.update(&part);
    }
    Ok(hash.finalize().into())
}

/// Whether the mapping has only zeros from `start`, in its last page.
pub fn zeros(map: &Mapping, start: usize) -> bool {
    let mut rest = vec![0; map.len() - start];
    map.read(start, &mut rest);
    rest.iter().all(|&byte| byte == 0)
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
