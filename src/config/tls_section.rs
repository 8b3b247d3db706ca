//! Reads `[bus.tls]`, `[bus.listen_tls]` and `[http.tls]`.

use super::choice::{TlsMode, TlsVersion};
use super::error::{ConfigError, Fault};
use super::section::Section;
use super::tls::{ListenTlsConfig, TlsConfig, TlsFiles};
use super::walk::Visitor;

const A_FILE: &str = "the path of a file";
const A_NAME: &str = "a host name or an IP address";

/// Reads `[bus.tls]`.
pub(super) fn read_tls(section: &mut Section<'_>) -> Result<Option<TlsConfig>, ConfigError> {
    let Some(mut section) = section.optional("tls")? else {
        return Ok(None);
    };
    let mut mode = TlsMode::Required;
    section.choice("mode", &mut mode)?;
    let tls = TlsConfig {
        mode,
        files: read_files(&mut section, "ca")?,
        server_name: section
            .text("server_name", A_NAME)?
            .map(|(text, _)| text.to_owned()),
    };
    section.finish()?;
    Ok(Some(tls))
}

/// Reads `[bus.listen_tls]`.
pub(super) fn read_listen_tls(
    section: &mut Section<'_>,
) -> Result<Option<ListenTlsConfig>, ConfigError> {
    let Some(mut section) = section.optional("listen_tls")? else {
        return Ok(None);
    };
    let files = read_server_files(&mut section)?;
    let mut tls = ListenTlsConfig {
        files,
        handshake_first: false,
        available: false,
    };
    section.flag("handshake_first", &mut tls.handshake_first)?;
    section.flag("available", &mut tls.available)?;
    if tls.handshake_first && tls.available {
        let fault = Fault::Expected("false, as `handshake_first` is true");
        return Err(ConfigError::wrong(section.location_of("available"), fault));
    }
    section.finish()?;
    Ok(Some(tls))
}

/// Reads `[http.tls]`.
pub(super) fn read_http_tls(section: &mut Section<'_>) -> Result<Option<TlsFiles>, ConfigError> {
    let Some(mut section) = section.optional("tls")? else {
        return Ok(None);
    };
    let files = read_server_files(&mut section)?;
    section.finish()?;
    Ok(Some(files))
}

/// The files of a listener, which has something to show.
fn read_server_files(section: &mut Section<'_>) -> Result<TlsFiles, ConfigError> {
    let files = read_files(section, "client_ca")?;
    if files.pair.is_none() {
        let fault = Fault::Missing(A_FILE);
        return Err(ConfigError::wrong(section.location_of("cert"), fault));
    }
    Ok(files)
}

fn read_files(section: &mut Section<'_>, ca: &'static str) -> Result<TlsFiles, ConfigError> {
    let mut min_version = TlsVersion::default();
    section.choice("min_version", &mut min_version)?;
    let ca = section.text(ca, A_FILE)?.map(|(text, _)| text.into());
    let pair = section.certificate()?;
    Ok(TlsFiles {
        ca,
        pair,
        min_version,
    })
}
