// SPDX-License-Identifier: GPL-2.0
//! The second process: gets the dma-buf over a Unix socket and answers through it.

use std::io::{Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{ensure, Context, Result};
use pagekit_user::abi::{self, SYNC_READ, SYNC_WRITE};
use pagekit_user::fds;
use pagekit_user::mapping::Mapping;
use pagekit_user::process::Child;
use pagekit_user::PAGE;

use crate::sum::{checksum, hex, zeros, Sum};

pub struct Second {
    child: Child,
    socket: UnixStream,
}

/// What it says it did.
pub struct Reply {
    pub pid: i32,
    /// Where it had the buffer mapped.
    pub address: u64,
    /// The checksum of what it saw there.
    pub sum: Sum,
    /// The page it wrote `reply_text` to.
    pub page: usize,
}

/// What it writes through the buffer.
pub fn reply_text(pid: i32, sum: &Sum) -> String {
    format!("reply of process {pid}: I read sha256 {}", hex(sum))
}

impl Second {
    pub fn start() -> Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let child = Child::spawn(|| serve(&theirs))?;
        Ok(Self {
            child,
            socket: ours,
        })
    }

    /// Hands it the buffer, whose first `len` bytes have this checksum, and waits
    /// until it is done.
    pub fn share(self, buf: BorrowedFd<'_>, len: usize, sum: &Sum) -> Result<Reply> {
        let pid = self.child.id();
        let answer = send(&self.socket, buf, len, sum).and_then(|()| {
            let mut words = [0; 16];
            let mut sum = Sum::default();
            (&self.socket).read_exact(&mut words)?;
            (&self.socket).read_exact(&mut sum)?;
            Ok((words, sum))
        });
        // If it failed, its own words say more than our socket does.
        self.child.join("second process")?;
        let (words, sum) = answer.context("second process: no answer")?;
        let (address, page) = words.split_at(8);
        Ok(Reply {
            pid,
            address: u64::from_ne_bytes(address.try_into()?),
            sum,
            page: u64::from_ne_bytes(page.try_into()?) as usize,
        })
    }
}

/// The length of what the buffer holds, and its checksum.
const MESSAGE: usize = 8 + size_of::<Sum>();

fn send(socket: &UnixStream, buf: BorrowedFd<'_>, len: usize, sum: &Sum) -> Result<()> {
    let data = [&(len as u64).to_ne_bytes()[..], sum].concat();
    let sent = fds::send(socket, buf, &data)?;
    ensure!(sent == MESSAGE, "only {sent} bytes went out");
    Ok(())
}

fn receive(socket: &UnixStream) -> Result<(OwnedFd, usize, Sum)> {
    let mut data = [0; MESSAGE];
    let (got, buf) = fds::receive(socket, &mut data)?;
    ensure!(got == MESSAGE, "only {got} bytes came in");
    let buf = buf.context("no file descriptor came in")?;
    let (len, sum) = data.split_at(8);
    let len = u64::from_ne_bytes(len.try_into()?) as usize;
    Ok((buf, len, sum.try_into()?))
}

/// In the second process.
fn serve(mut socket: &UnixStream) -> Result<()> {
    let (buf, len, expected) = receive(socket)?;
    let size = usize::try_from(abi::size(&buf)?)?;
    ensure!(len <= size, "{len} bytes in a dma-buf of {size}");
    let map = Mapping::shared(&buf, 0, size).context("mapping the dma-buf")?;
    let sum = abi::with_cpu_access(&buf, SYNC_READ, || {
        ensure!(zeros(&map, len), "the end of the last page is not zero");
        Ok(checksum(&map, len))
    })?;
    ensure!(
        sum == expected,
        "saw sha256 {}, was told {}",
        hex(&sum),
        hex(&expected)
    );
    let page = size / PAGE / 2;
    let text = reply_text(std::process::id() as i32, &expected);
    abi::with_cpu_access(&buf, SYNC_WRITE, || {
        map.write(page * PAGE, text.as_bytes());
        Ok(())
    })?;
    socket.write_all(&(map.at(0) as u64).to_ne_bytes())?;
    socket.write_all(&(page as u64).to_ne_bytes())?;
    socket.write_all(&sum)?;
    Ok(())
}
