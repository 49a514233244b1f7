//! Headers of tar files (POSIX.1-1988 ustar), as few kinds as a backup needs: plain files, and nothing else is read.

/// The unit of a tar file.
pub(super) const BLOCK: usize = 512;

/// A file in the archive.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) name: String,
    pub(super) size: u64,
}

/// Bytes that fill the last block of `size` bytes.
pub(super) fn padding(size: u64) -> usize {
    let used = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    (BLOCK - used) % BLOCK
}

/// The header of a plain file that its owner alone may read; `None` if its name is too long for one.
pub(super) fn head(name: &str, size: u64, modified_s: u64) -> Option<[u8; BLOCK]> {
    let mut block = [0; BLOCK];
    block
        .get_mut(..100)?
        .get_mut(..name.len())?
        .copy_from_slice(name.as_bytes());
    octal(&mut block[100..108], 0o600);
    octal(&mut block[108..116], 0);
    octal(&mut block[116..124], 0);
    number(&mut block[124..136], size);
    number(&mut block[136..148], modified_s);
    block[156] = b'0';
    block[257..265].copy_from_slice(b"ustar\x0000");
    let sum = checksum(&block);
    block[148..156].copy_from_slice(&sum);
    Some(block)
}

/// Reads a header; `None` for the empty block at the end. The error says what is wrong, with the name if there is one.
pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Option<Head>, String> {
    if block.iter().all(|b| *b == 0) {
        return Ok(None);
    }
    let name = String::from_utf8_lossy(until_nul(&block[..100])).into_owned();
    if block[148..156] != checksum(block) {
        return Err(format!("the header of {name:?} is damaged"));
    }
    match block[156] {
        b'0' | 0 => {}
        b'1' | b'2' => return Err(format!("{name:?} is a link")),
        b'5' => return Err(format!("{name:?} is a directory")),
        kind => return Err(format!("{name:?} is no plain file (type {:?})", char::from(kind))),
    }
    if block[345] != 0 {
        return Err(format!("{name:?} has a name in two parts"));
    }
    let size = read_number(&block[124..136]).ok_or_else(|| format!("{name:?} has no readable size"))?;
    Ok(Some(Head { name, size }))
}

fn until_nul(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    &field[..end]
}

/// The sum of all bytes, those of the sum itself taken as blanks, as every tar writes it.
fn checksum(block: &[u8; BLOCK]) -> [u8; 8] {
    let all = block.iter().enumerate();
    let sum = all
        .map(|(at, byte)| match at {
            148..156 => u64::from(b' '),
            _ => u64::from(*byte),
        })
        .sum();
    let mut field = *b"000000\0 ";
    octal(&mut field[..7], sum);
    field
}

/// Digits up to a closing NUL.
fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let text = format!("{value:0digits$o}");
    field[..digits].copy_from_slice(&text.as_bytes()[text.len() - digits..]);
}

/// What eleven octal digits cannot hold (8 GiB) is written in base 256, as GNU tar and all after it do.
fn number(field: &mut [u8], value: u64) {
    if value < 1 << 33 {
        octal(field, value);
    } else {
        field[0] = 0x80;
        let at = field.len() - 8;
        field[at..].copy_from_slice(&value.to_be_bytes());
    }
}

fn read_number(field: &[u8]) -> Option<u64> {
    if field[0] == 0x80 {
        let (zeros, value) = field[1..].split_at(field.len() - 9);
        return zeros
            .iter()
            .all(|b| *b == 0)
            .then(|| value.try_into().map(u64::from_be_bytes).ok())?;
    }
    let text = std::str::from_utf8(until_nul(field)).ok()?.trim();
    u64::from_str_radix(text, 8).ok()
}
