// SPDX-License-Identifier: GPL-2.0
//! Which cases and rows are for which kind of device.

use anyhow::bail;

use crate::env::{of_memfd, Fill};
use crate::groups::{Case, Group, Row};
use crate::{
    create, device, dma, failures, gem, heap, hostile, i915, inputs, isolation, mappings, memory,
    nodes, nouveau, numa, qemu, races, radeon, sharing, shown, style,
};

/// A new sample adds itself here.
pub const GROUPS: &[Group] = &[
    udmabuf("udmabuf"),
    udmabuf("cdmabuf"),
    Group {
        name: "heap",
        fill: heap::filled,
        tables: &[
            heap::CASES,
            mappings::CASES,
            device::CASES,
            sharing::CASES,
            shown::CASES,
            isolation::CASES,
            isolation::HEAP,
        ],
        inputs: &[inputs::heap::ROWS, inputs::buffer::ROWS],
    },
    style(
        "i915",
        &[
            style::CASES,
            hostile::STYLE,
            mappings::CASES,
            device::CASES,
            sharing::CASES,
            shown::CASES,
            shown::OBJECTS,
            i915::CASES,
            hostile::I915,
            isolation::CASES,
            isolation::STYLE,
            isolation::I915,
        ],
        &[
            inputs::style::ROWS,
            inputs::style::I915,
            inputs::buffer::ROWS,
        ],
    ),
    style(
        "nouveau",
        &[
            style::CASES,
            hostile::STYLE,
            mappings::CASES,
            device::CASES,
            sharing::CASES,
            shown::CASES,
            shown::OBJECTS,
            nouveau::CASES,
            hostile::PINNED,
            isolation::CASES,
            isolation::STYLE,
        ],
        &[
            inputs::style::ROWS,
            inputs::style::NOUVEAU,
            inputs::buffer::ROWS,
        ],
    ),
    style(
        "radeon",
        &[
            style::CASES,
            hostile::STYLE,
            mappings::CASES,
            device::CASES,
            sharing::CASES,
            shown::CASES,
            shown::OBJECTS,
            radeon::CASES,
            hostile::PINNED,
            isolation::CASES,
            isolation::STYLE,
        ],
        &[
            inputs::style::ROWS,
            inputs::style::RADEON,
            inputs::buffer::ROWS,
        ],
    ),
    Group {
        name: "gem",
        fill: gem::filled,
        tables: &[
            gem::CASES,
            mappings::CASES,
            device::CASES,
            sharing::CASES,
            isolation::CASES,
            isolation::GEM,
        ],
        inputs: &[inputs::gem::ROWS, inputs::buffer::ROWS],
    },
    node(
        "node-pfns",
        PFNS,
        &[inputs::node::ROWS, inputs::node::PFNS, inputs::node::FILE],
    ),
    node("node-huge-pfns", HUGE_PFNS, PFN_INPUTS),
    node("node-eager-pfns", PFNS, PFN_INPUTS),
    node("node-pages", REFERENCED, PAGE_INPUTS),
    node("node-huge-pages", HUGE_REFERENCED, PAGE_INPUTS),
    node(
        "node-eager-pages",
        REFERENCED,
        &[inputs::node::ROWS, inputs::node::EAGER],
    ),
    node("importer", &[], &[inputs::test_importer::ROWS]),
    node("parameters", &[], &[inputs::parameters::ROWS]),
    Group {
        name: "cma",
        fill: of_memfd,
        tables: &[hostile::CMA],
        inputs: &[],
    },
    Group {
        name: "numa",
        fill: heap::filled,
        tables: &[numa::CASES],
        inputs: &[],
    },
    dma("dma.udmabuf", of_memfd, &[dma::CASES]),
    dma("dma.cdmabuf", of_memfd, &[dma::CASES]),
    dma("dma.heap", heap::filled, &[dma::CASES, dma::HEAP]),
    dma("dma.gem", gem::filled, &[dma::CASES, dma::GEM]),
    dma("dma.i915", style::filled, &[dma::CASES]),
    dma("dma.nouveau", style::filled, &[dma::CASES]),
    dma("dma.radeon", style::filled, &[dma::CASES]),
    node("qemu", &[qemu::CASES], &[]),
    node("qemu-mainline", &[qemu::CASES], &[]),
    Group {
        name: "races",
        fill: |_, _, _| bail!("races are between all kinds"),
        tables: &[
            races::CASES,
            races::revoke::CASES,
            races::fds::CASES,
            races::memory::CASES,
            races::nodes::CASES,
            races::signals::CASES,
            races::modules::CASES,
        ],
        inputs: &[],
    },
    Group {
        name: "failures.udmabuf",
        fill: of_memfd,
        tables: &[
            failures::UDMABUF,
            failures::EXPORTER,
            failures::VMAP,
            failures::FAULT,
        ],
        inputs: &[],
    },
    Group {
        name: "failures.heap",
        fill: heap::filled,
        tables: &[failures::HEAP, failures::EXPORTER, failures::VMAP],
        inputs: &[],
    },
    Group {
        name: "failures.gem",
        fill: gem::filled,
        tables: &[failures::GEM, failures::EXPORTER, failures::VMAP],
        inputs: &[],
    },
    style(
        "failures.i915",
        &[
            failures::STYLE,
            failures::I915,
            failures::EXPORTER,
            failures::VMAP,
        ],
        &[],
    ),
    style(
        "failures.nouveau",
        &[failures::STYLE, failures::EXPORTER],
        &[],
    ),
    style(
        "failures.radeon",
        &[
            failures::STYLE,
            failures::RADEON,
            failures::EXPORTER,
            failures::VMAP,
            failures::FAULT,
        ],
        &[],
    ),
    node("failures.node-pfns", NODE_FAILURES_OF_FILES, &[]),
    node("failures.node-huge-pfns", NODE_FAILURES, &[]),
    node("failures.node-eager-pfns", NODE_FAILURES_EAGER, &[]),
    node("failures.node-pages", NODE_FAILURES, &[]),
    node("failures.node-huge-pages", NODE_FAILURES, &[]),
    node("failures.node-eager-pages", NODE_FAILURES_EAGER, &[]),
    node("failures.bench", &[failures::HELPERS], &[]),
];

/// The cases for each kind of mapping.
const PFNS: Tables = &[
    nodes::CASES,
    nodes::gup::CASES,
    nodes::advice::CASES,
    nodes::file::CASES,
    nodes::file::PFN_CASES,
    isolation::NODE,
];
const HUGE_PFNS: Tables = &[
    nodes::CASES,
    nodes::gup::CASES,
    nodes::advice::CASES,
    nodes::file::CASES,
    nodes::file::PFN_CASES,
    nodes::huge::CASES,
    isolation::NODE,
];
const REFERENCED: Tables = &[
    nodes::CASES,
    nodes::gup::CASES,
    nodes::advice::CASES,
    nodes::file::CASES,
    isolation::NODE,
];
const HUGE_REFERENCED: Tables = &[
    nodes::CASES,
    nodes::gup::CASES,
    nodes::advice::CASES,
    nodes::file::CASES,
    nodes::huge::CASES,
    isolation::NODE,
];
const NODE_FAILURES_EAGER: Tables = &[nodes::failures::CASES];
const NODE_FAILURES: Tables = &[nodes::failures::CASES, nodes::failures::FAULT_CASES];
const NODE_FAILURES_OF_FILES: Tables = &[
    nodes::failures::CASES,
    nodes::failures::FAULT_CASES,
    nodes::failures::FILE_CASES,
];

const PFN_INPUTS: Inputs = &[inputs::node::ROWS, inputs::node::PFNS];
const PAGE_INPUTS: Inputs = &[inputs::node::ROWS, inputs::node::FAULTS];

type Tables = &'static [&'static [Case]];
type Inputs = &'static [&'static [&'static [Row]]];

/// A driver with the interface of mainline's udmabuf.
const fn udmabuf(name: &'static str) -> Group {
    Group {
        name,
        fill: of_memfd,
        tables: &[
            create::CASES,
            mappings::CASES,
            memory::CASES,
            hostile::UDMABUF,
            device::CASES,
            sharing::CASES,
            sharing::OF_MEMFDS,
            shown::CASES,
            isolation::CASES,
            isolation::UDMABUF,
        ],
        inputs: &[inputs::udmabuf::ROWS, inputs::buffer::ROWS],
    }
}

/// A driver of `pagekit_style.h`.
const fn style(name: &'static str, tables: Tables, inputs: Inputs) -> Group {
    Group {
        name,
        fill: style::filled,
        tables,
        inputs,
    }
}

/// An exporter whose calls of the DMA API are looked at.
const fn dma(name: &'static str, fill: Fill, tables: Tables) -> Group {
    Group {
        name,
        fill,
        tables,
        inputs: &[],
    }
}

/// A device that makes no buffers. The files of a test node come with pages.
const fn node(name: &'static str, tables: Tables, inputs: Inputs) -> Group {
    Group {
        name,
        fill: |_, _, _| bail!("this device makes no buffers"),
        tables,
        inputs,
    }
}
