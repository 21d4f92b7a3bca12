//! The conformance list on QEMU.

bouvet_e2e::conform!(bouvet_e2e::site::Site::qemu);
