// SPDX-License-Identifier: GPL-2.0
//! What a module refuses when it is loaded, and what its parameters refuse later.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::io;
use rustix::system::{delete_module, finit_module};

use super::{rows, tried};
use crate::env::Env;
use crate::groups::{Outcome, Row};

pub const ROWS: &[&[Row]] = &[
    rows! { "insmod of pagekit_udmabuf", insmod;
    list_limit_word: "list_limit=many" => INVAL, "core: param_set_int(): kstrtoint()",
        |p| *p = "list_limit=many".into();
    list_limit_range: "list_limit=2147483648" => RANGE, "core: param_set_int(): kstrtoint()",
        |p| *p = "list_limit=2147483648".into();
    size_limit_word: "size_limit_mb=" => INVAL, "core: param_set_int(): kstrtoint()",
        |p| *p = "size_limit_mb=".into();
    size_limit_range: "size_limit_mb=-2147483649" => RANGE, "core: param_set_int(): kstrtoint()",
        |p| *p = "size_limit_mb=-2147483649".into();
    name_alone: "name, without one" => INVAL, "core: parse_one(): !val", |p| *p = "name".into();
    name_empty: "an empty name" => INVAL, "Device::init(): is_empty()", |p| *p = "name=".into();
    name_long: "a name of 1025 bytes" => NOSPC, "core: param_set_charp(): maxlen",
        |p| *p = format!("name={}", "x".repeat(1025));
    name_taken: "the name of another device" => BUSY, "Device::init(): name_is_taken()",
        |p| *p = "name=pagekit-importer".into();
    },
    rows! { "insmod of pagekit_heap", insmod_heap;
    heap_name_empty: "an empty name" => INVAL, "Heap::init(): *name", |p| *p = c"name=";
    heap_name_format: "a name with a directive" => INVAL, "Heap::init(): strchr()", |p| *p = c"name=%s";
    heap_name_taken: "the name of another heap" => BUSY, "Heap::init(): name_is_taken()",
        |p| *p = c"name=system";
    },
    rows! { "parameter in sysfs", write;
    set_word: "many to list_limit" => INVAL, "core: param_set_int(): kstrtoint()", |w| w.value = "many";
    set_range: "2147483648 to size_limit_mb" => RANGE, "core: param_set_int(): kstrtoint()",
        |w| *w = Write { name: "size_limit_mb", value: "2147483648" };
    set_name: "a name" => ACCESS, "udmabuf_shim.c: name is read only", |w| *w = Write { name: "name", value: "x" };
    },
];

const MODULE: &str = "pagekit_udmabuf";

fn file_of(module: &str) -> Result<File> {
    let folder = std::env::var("MODDIR").context("MODDIR")?;
    Ok(File::open(Path::new(&folder).join(format!("{module}.ko")))?)
}

/// A good call would load it for good: the other cases want it loaded later.
fn insmod_heap(_env: &Env, change: impl FnOnce(&mut &CStr) -> Result<()>) -> Outcome {
    let file = file_of("pagekit_heap")?;
    let mut bad = c"";
    change(&mut bad)?;
    tried(|| finit_module(&file, bad, 0), || Ok(()))
}

/// The good call loads it again.
fn insmod(_env: &Env, change: impl FnOnce(&mut String) -> Result<()>) -> Outcome {
    let file = file_of(MODULE)?;
    let mut bad = String::new();
    change(&mut bad)?;
    let (name, bad) = (CString::new(MODULE)?, CString::new(bad)?);
    delete_module(&name, libc::O_NONBLOCK).context("rmmod")?;
    tried(
        || finit_module(&file, &bad, 0),
        || finit_module(&file, c"", 0),
    )
}

struct Write {
    name: &'static str,
    value: &'static str,
}

fn write(env: &Env, change: impl FnOnce(&mut Write) -> Result<()>) -> Outcome {
    let name = "list_limit";
    let mut bad = Write { name, value: "" };
    change(&mut bad)?;
    let path = |name| -> Result<PathBuf> { env.parameter(name).context("not in sysfs") };
    let (at, good) = (path(bad.name)?, path(name)?);
    let value = std::fs::read(&good)?;
    let write = |path: &Path, value: &[u8]| -> io::Result<()> {
        let result = std::fs::write(path, value);
        result.map_err(|error| io::Errno::from_io_error(&error).unwrap_or(io::Errno::IO))
    };
    tried(|| write(&at, bad.value.as_bytes()), || write(&good, &value))
}
