// SPDX-License-Identifier: GPL-2.0
//! What the kernel shows of buffers and objects to who looks around in procfs and debugfs.

use std::os::fd::{AsFd, AsRawFd};

use anyhow::{ensure, Context, Result};
use pagekit_user::abi;
use pagekit_user::style::{Info, Object, INFO_IMPORTED};
use pagekit_user::test_importer::{Dir, Importer, Kind};
use pagekit_user::{kernel, PAGE};

use crate::env::Env;
use crate::groups::Case;
use crate::style::{foreign, ODD_SIZE};

/// For any exporter.
pub const CASES: &[Case] = &[Case::new("named", named).smoke()];

/// For drivers of `samples/pagekit_style.h`.
pub const OBJECTS: &[Case] = &[Case::new("objects_shown", objects_shown).smoke()];

/// bufinfo has who exported a buffer, its name once it has one, and who is attached.
fn named(env: &Env) -> Result<()> {
    let buf = env.filled(1, 16)?;
    let shown = kernel::buffer(&buf)?;
    let device = env.device.file_name().and_then(|name| name.to_str());
    let exporter = shown.exporter.replace('_', "-");
    ensure!(
        exporter.starts_with(device.context("no name")?) && shown.size == 16 * PAGE,
        "{shown:?}"
    );
    ensure!(shown.name == "<none>" && shown.devices.is_empty());
    abi::set_name(&buf, c"a-name")?;
    ensure!(abi::fdinfo(buf.as_raw_fd(), "name")? == "a-name");
    ensure!(abi::fdinfo(buf.as_raw_fd(), "exp_name")? == shown.exporter);
    let importer = Importer::open()?;
    let attachment = importer.attach(&buf, Kind::Static)?;
    let shown = kernel::buffer(&buf)?;
    ensure!(shown.name == "a-name" && shown.devices == ["pagekit-importer"]);
    drop(attachment);
    ensure!(kernel::buffer(&buf)?.devices.is_empty());
    Ok(())
}

/// The driver's own list and the files of its users have what INFO says, and no more.
fn objects_shown(env: &Env) -> Result<()> {
    let size = format!("size {} ", ODD_SIZE * PAGE);
    let listed = || -> Result<Vec<String>> {
        let device = env.device.file_name().context("no name")?;
        let list = kernel::read(
            std::path::Path::new("/sys/kernel/debug")
                .join(device)
                .join("objects"),
        )?;
        let lines = list.lines().filter(|line| line.starts_with(&size));
        Ok(lines.map(|line| line.trim_end().to_owned()).collect())
    };
    let object = Object::new(&env.device, ODD_SIZE)?;
    let check = |pinned: bool| -> Result<()> {
        let info = object.info()?;
        ensure!((info.pinned != 0) == pinned, "{info:?}");
        ensure!(listed()? == [fields(&info).join(" ")], "{:?}", listed()?);
        of_file(&object, &info)
    };
    let pins_always = object.info()?.pinned != 0;
    check(pins_always)?;
    let buf = object.export()?;
    let importer = Importer::open()?;
    let attachment = importer.attach(&buf, Kind::Static)?;
    attachment.map(Dir::Both)?;
    check(true)?;
    attachment.unmap()?;
    let again = Object::of(&env.device, &buf)?;
    ensure!(object.info()?.sharers > 1 && again.info()? == object.info()?);
    check(pins_always)?;

    // An import is no object of this driver's.
    let (_memfd, other) = foreign(2, ODD_SIZE)?;
    let import = Object::of(&env.device, other)?;
    let info = import.info()?;
    ensure!(info.flags == INFO_IMPORTED && listed()?.len() == 1);
    of_file(&import, &info)?;
    let none = Object::open(&env.device)?;
    ensure!(abi::fdinfo(none.as_fd().as_raw_fd(), "size").is_err());

    drop((attachment, again, object, buf));
    ensure!(listed()?.is_empty(), "listed after release");
    Ok(())
}

/// As debugfs has them.
fn fields(info: &Info) -> Vec<String> {
    let fields = [
        ("size", info.size),
        ("pinned", info.pinned),
        ("held", info.held),
        ("resident", info.resident),
        ("attachments", info.attachments.into()),
        ("mappings", info.mappings.into()),
        ("sharers", info.sharers.into()),
        ("object_flags", info.flags.into()),
    ];
    let fields = fields.map(|(name, value)| format!("{name} {value}"));
    fields.into()
}

/// So has the file of an object.
fn of_file(object: &Object, info: &Info) -> Result<()> {
    for field in fields(info) {
        let (name, value) = field.split_once(' ').context("no value")?;
        let shown = abi::fdinfo(object.as_fd().as_raw_fd(), name)?;
        ensure!(shown == value, "{name} is {shown}, not {value}");
    }
    Ok(())
}
