//! The secret that coordinator and workers share, and how each proves that it knows it without saying it.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::PROTOCOL;

const TOKEN_BYTES: usize = 32;
/// A token file is 64 digits and the end of a line; whatever is much longer is none.
const FILE_BYTES_MAX: u64 = 256;

/// 32 random bytes.
#[derive(Clone)]
pub struct Token([u8; TOKEN_BYTES]);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Reading or writing the file.
    #[error("{doing} the token file {path}: {source}", path = path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// Others may read it.
    #[error("the token file {path} may be read by others: chmod 600 {path}", path = .0.display())]
    Exposed(PathBuf),
    /// It holds something else.
    #[error("{path} holds no token: 64 hexadecimal digits are expected", path = .0.display())]
    Content(PathBuf),
    /// The operating system gave no random bytes.
    #[error("no random bytes from the operating system: {0}")]
    Random(getrandom::Error),
}

/// Who proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Coordinator,
    Worker,
    /// Of two nodes that examine each other, the one that was dialled: in the coordinator's place.
    Listener,
    /// And the one that dialled: in the worker's.
    Dialler,
}

/// The random bytes of one handshake.
#[derive(Clone, Debug)]
pub(crate) struct Nonces<'a> {
    pub(crate) worker: &'a [u8],
    pub(crate) coordinator: &'a [u8],
}

impl Token {
    /// A new one.
    pub fn random() -> Result<Self, TokenError> {
        Ok(Self(random_bytes()?))
    }

    /// The token in a file, which is made if it is not there, for its owner's eyes only.
    pub fn open_or_create(path: &Path) -> Result<Self, TokenError> {
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        match made {
            Ok(file) => {
                let token = Self::random()?;
                token.write(file).map_err(|source| {
                    // What is left of it would be refused the next time, when there may be room again.
                    let _ = std::fs::remove_file(path);
                    failed("writing", path, source)
                })?;
                Ok(token)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Self::read(path),
            Err(source) => Err(failed("making", path, source)),
        }
    }

    /// The token in a file that is there.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let file = File::open(path).map_err(|source| failed("opening", path, source))?;
        let reading = |source| failed("reading", path, source);
        if file.metadata().map_err(reading)?.permissions().mode() & 0o077 != 0 {
            return Err(TokenError::Exposed(path.into()));
        }
        let mut text = String::new();
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(reading)?;
        Self::from_hex(text.trim()).ok_or_else(|| TokenError::Content(path.into()))
    }

    fn write(&self, mut file: File) -> std::io::Result<()> {
        let text: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(file, "{text}")?;
        file.sync_all()
    }

    fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 2 * TOKEN_BYTES || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        let mut bytes = [0; TOKEN_BYTES];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// What proves that `side` knows the token, in the handshake of these nonces. The other side's proof is another.
    pub(crate) fn proof(&self, side: Side, nonces: &Nonces<'_>) -> Vec<u8> {
        self.mac(side, nonces).finalize().into_bytes().to_vec()
    }

    /// Whether `proof` is that, in a time that does not depend on where they differ.
    pub(crate) fn accepts(&self, side: Side, nonces: &Nonces<'_>, proof: &[u8]) -> bool {
        self.mac(side, nonces).verify_slice(proof).is_ok()
    }

    fn mac(&self, side: Side, nonces: &Nonces<'_>) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("any length of key will do");
        mac.update(match side {
            Side::Coordinator => &b"tandem coordinator"[..],
            Side::Worker => b"tandem worker",
            Side::Listener => b"tandem pair listener",
            Side::Dialler => b"tandem pair dialler",
        });
        mac.update(&PROTOCOL.to_be_bytes());
        for nonce in [nonces.worker, nonces.coordinator] {
            mac.update(&(nonce.len() as u64).to_be_bytes());
            mac.update(nonce);
        }
        mac
    }
}

impl std::fmt::Debug for Token {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// Bytes that nobody can guess, as nonce or token.
pub(crate) fn random_bytes() -> Result<[u8; TOKEN_BYTES], TokenError> {
    let mut bytes = [0; TOKEN_BYTES];
    getrandom::fill(&mut bytes).map_err(TokenError::Random)?;
    Ok(bytes)
}

/// Whether it can be one: a nonce that its maker shortened would be easier to meet again.
pub(crate) fn is_nonce(bytes: &[u8]) -> bool {
    bytes.len() == TOKEN_BYTES
}

fn failed(doing: &'static str, path: &Path, source: std::io::Error) -> TokenError {
    TokenError::File { doing, path: path.into(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_made_once_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let made = Token::open_or_create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Token::open_or_create(&path).unwrap().0, made.0);
        assert_eq!(Token::read(&path).unwrap().0, made.0);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Token::read(&path).unwrap_err().to_string().contains("chmod 600"));
    }

    #[test]
    fn files_that_hold_no_token_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        assert!(matches!(Token::read(&path), Err(TokenError::File { .. })));
        for text in ["", "abc", &"g".repeat(64), &"a".repeat(63), &"a".repeat(4096), &"é".repeat(32)] {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            assert!(matches!(Token::read(&path), Err(TokenError::Content(_))), "{text}");
        }
    }

    #[test]
    fn a_proof_holds_for_one_side_one_token_and_one_handshake() {
        let (token, other) = (Token([1; 32]), Token([2; 32]));
        let nonces = Nonces { worker: &[3; 32], coordinator: &[4; 32] };
        let swapped = Nonces { worker: &[4; 32], coordinator: &[3; 32] };
        let proof = token.proof(Side::Worker, &nonces);
        assert!(token.accepts(Side::Worker, &nonces, &proof));
        assert!(!token.accepts(Side::Coordinator, &nonces, &proof), "nobody can prove by echoing");
        assert!(!token.accepts(Side::Worker, &swapped, &proof));
        assert!(!other.accepts(Side::Worker, &nonces, &proof));
        assert!(!token.accepts(Side::Worker, &nonces, &proof[..31]));
        assert!(!token.accepts(Side::Worker, &nonces, &[]));
    }
}
