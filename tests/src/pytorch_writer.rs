//! Writes PyTorch shards as the released checkpoints have them: a zip of stored entries, one of them
//! a protocol-2 pickle of an `OrderedDict` of tensors.
//!
//! The layout is that of `torch.save`; flm writes it only to make inputs for its demo and its tests.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use zip::{CompressionMethod, ZipWriter, result::ZipError, write::SimpleFileOptions};

/// Name and shape of a tensor in bf16.
pub type Named = (String, Vec<usize>);

/// Writes `config` and the bf16 tensors `tensors` to the directory `dir`, a new shard whenever one would exceed
/// `max_shard_size` bytes of tensors; `fill` appends the bytes of a tensor of this shape (row-major).
///
/// # Errors
/// When a file cannot be written, or `fill` gives another number of bytes than the shape needs.
pub fn write_pytorch_checkpoint(
    dir: &Path,
    config: &str,
    tensors: &[Named],
    max_shard_size: u64,
    mut fill: impl FnMut(&[usize], &mut Vec<u8>),
) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let mut shards: Vec<(u64, Vec<&Named>)> = Vec::new();
    for tensor in tensors {
        let bytes = byte_len(tensor);
        match shards.last_mut() {
            Some((size, shard)) if *size + bytes <= max_shard_size => {
                *size += bytes;
                shard.push(tensor);
            }
            _ => shards.push((bytes, vec![tensor])),
        }
    }
    let mut weight_map = BTreeMap::new();
    for (i, (_, shard)) in shards.iter().enumerate() {
        let stem = format!("pytorch_model-{:05}-of-{:05}", i + 1, shards.len());
        write_shard(File::create(dir.join(format!("{stem}.bin")))?, &stem, shard, &mut fill)?;
        weight_map.extend(shard.iter().map(|(name, _)| (name.as_str(), format!("{stem}.bin"))));
    }
    let total: u64 = shards.iter().map(|(size, _)| size).sum();
    let index = serde_json::json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    std::fs::write(dir.join("pytorch_model.bin.index.json"), format!("{index:#}\n"))?;
    std::fs::write(dir.join("config.json"), config)
}

fn byte_len((_, shape): &Named) -> u64 {
    shape.iter().product::<usize>() as u64 * 2
}

fn write_shard(
    file: File,
    stem: &str,
    shard: &[&Named],
    fill: &mut impl FnMut(&[usize], &mut Vec<u8>),
) -> Result<(), ZipError> {
    let mut zip = ZipWriter::new(BufWriter::new(file));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(false);
    zip.start_file(format!("{stem}/data.pkl"), stored)?;
    zip.write_all(&pickle(shard))?;
    zip.start_file(format!("{stem}/byteorder"), stored)?;
    zip.write_all(b"little")?;
    let mut bytes = Vec::new();
    for (key, tensor) in shard.iter().enumerate() {
        bytes.clear();
        fill(&tensor.1, &mut bytes);
        if bytes.len() as u64 != byte_len(tensor) {
            let text =
                format!("{}: {} bytes given, its shape needs {}", tensor.0, bytes.len(), byte_len(tensor));
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text).into());
        }
        let large = bytes.len() as u64 >= u64::from(u32::MAX);
        zip.start_file(format!("{stem}/data/{key}"), stored.with_alignment(64).large_file(large))?;
        zip.write_all(&bytes)?;
    }
    zip.start_file(format!("{stem}/version"), stored)?;
    zip.write_all(b"3\n")?;
    zip.finish()?.flush()?;
    Ok(())
}

/// An `OrderedDict` of `torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`.
fn pickle(shard: &[&Named]) -> Vec<u8> {
    let mut p = Pickle(b"\x80\x02".to_vec());
    p.empty_ordered_dict();
    p.0.push(b'('); // MARK of SETITEMS
    for (key, (name, shape)) in shard.iter().enumerate() {
        p.text(name);
        p.global("torch._utils", "_rebuild_tensor_v2");
        p.0.push(b'('); // MARK of the arguments
        p.0.push(b'('); // MARK of the persistent id
        p.text("storage");
        p.global("torch", "BFloat16Storage");
        p.text(&key.to_string());
        p.text("cpu");
        p.integer(shape.iter().product::<usize>() as u64);
        p.0.extend(b"tQ"); // TUPLE, BINPERSID
        p.integer(0);
        p.tuple(shape);
        let mut strides = vec![1; shape.len()];
        for i in (1..strides.len()).rev() {
            strides[i - 1] = strides[i] * shape[i];
        }
        p.tuple(&strides);
        p.0.push(0x89); // NEWFALSE: requires_grad
        p.empty_ordered_dict();
        p.0.extend(b"tR"); // TUPLE, REDUCE
    }
    p.0.extend(b"u."); // SETITEMS, STOP
    p.0
}

/// Opcodes as CPython's `pickletools` names them.
struct Pickle(Vec<u8>);

impl Pickle {
    fn global(&mut self, module: &str, name: &str) {
        self.0.extend(format!("c{module}\n{name}\n").bytes());
    }

    fn text(&mut self, text: &str) {
        self.0.push(b'X'); // BINUNICODE
        self.0.extend((text.len() as u32).to_le_bytes());
        self.0.extend(text.bytes());
    }

    fn integer(&mut self, n: u64) {
        match i32::try_from(n) {
            Ok(n) => {
                self.0.push(b'J'); // BININT
                self.0.extend(n.to_le_bytes());
            }
            Err(_) => {
                self.0.extend([0x8a, 9]); // LONG1, nine bytes: never negative
                self.0.extend(n.to_le_bytes());
                self.0.push(0);
            }
        }
    }

    fn tuple(&mut self, items: &[usize]) {
        self.0.push(b'(');
        for &item in items {
            self.integer(item as u64);
        }
        self.0.push(b't');
    }

    fn empty_ordered_dict(&mut self) {
        self.global("collections", "OrderedDict");
        self.0.extend(b")R"); // EMPTY_TUPLE, REDUCE
    }
}
