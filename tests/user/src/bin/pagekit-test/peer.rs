// SPDX-License-Identifier: GPL-2.0
//! What mainline's `/dev/udmabuf` and system heap are known to fail (seen on 7.3.4).

const STALE: &str = "shows memory that was never zeroed";
const LOST: &str = "loses what was written when the file is read";
const FOLIO: &str = "pins folios, not pages";
const PRIVATE: &str = "maps privately for reading";
const WRITABLE: &str = "is mapped writable by importers where it is read only";
const WARNS: &str = "warns of what can't be allocated";
const OOM: &str = "allocates until the OOM killer comes";

const KNOWN_FAILURES: &[(&str, &str)] = &[
    ("udmabuf.stale_page", STALE),
    ("udmabuf.stale_16_pages", STALE),
    ("udmabuf.stale_huge", STALE),
    ("udmabuf.stale_after_punch", STALE),
    ("udmabuf.unwritten_page", LOST),
    ("udmabuf.unwritten_16_pages", LOST),
    ("udmabuf.unwritten_huge", LOST),
    ("udmabuf.dirty_on_release", "never marks pages dirty"),
    (
        "udmabuf.read_only_fd",
        "makes writable what was opened read only",
    ),
    ("udmabuf.folios_16_pages_pins", FOLIO),
    ("udmabuf.folios_huge_pins", FOLIO),
    ("udmabuf.charged", "charges nobody"),
    ("udmabuf.partly_written_page", STALE),
    ("udmabuf.partly_written_16_pages", STALE),
    ("udmabuf.node_mode", "has a rule of udev"),
    ("heap.read_only", PRIVATE),
    ("heap.read_only_imported", WRITABLE),
    ("inputs.udmabuf.size_memory", WARNS),
    ("inputs.heap.len_huge", OOM),
    ("inputs.heap.len_sign", OOM),
    ("inputs.heap.more_than_memory", OOM),
    ("inputs.heap.map_private_read", PRIVATE),
    ("inputs.heap.read_only_private", PRIVATE),
];

/// And where all DMA goes through bounce buffers.
const BOUNCED: &[(&str, &str)] = &[
    ("udmabuf.device_writes", UNSYNCED),
    ("udmabuf.device_writes_file", UNSYNCED),
    ("udmabuf.device_large", SEGMENTS),
    ("udmabuf.device_hugetlb", SEGMENTS),
    ("udmabuf.device_dynamic", UNSYNCED),
    ("udmabuf.device_told_of_moves", UNSYNCED),
    ("udmabuf.device_then_cpu", UNSYNCED),
    ("udmabuf.cpu_then_device", UNSYNCED),
    ("udmabuf.device_beside_cpu", UNSYNCED),
    ("udmabuf.device_to_device", UNSYNCED),
    ("udmabuf.device_late", UNSYNCED),
    ("udmabuf.kernel_beside_device", UNSYNCED),
    ("heap.device_large", SEGMENTS),
    ("heap.device_maps_twice", "keeps bounce buffers"),
    ("heap.device_beside_cpu", "loses what a device has written"),
    ("heap.device_late", "syncs before it waits for fences"),
];
const SEGMENTS: &str = "makes segments that can't be bounced";
const UNSYNCED: &str = "syncs a mapping that no importer has";

/// Why mainline fails this case, if it does.
pub fn known_failure(name: &str) -> Option<&'static str> {
    let bounced =
        std::fs::read_to_string("/proc/cmdline").is_ok_and(|s| s.contains("swiotlb=force"));
    KNOWN_FAILURES
        .iter()
        .chain(BOUNCED.iter().filter(|_| bounced))
        .find(|(known, _)| *known == name)
        .map(|&(_, why)| why)
}
