//! Ports of this host that lead into a sandbox without a network.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use cowslip_e2e::{Instance, Kernel, Setup};

#[test]
fn a_port_of_this_host_leads_into_a_sandbox() {
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let _ = host.say("run -d --name web box").ok();
    // It gives back what it hears, and ends when that has ended.
    let _ = host
        .sh("web", "nc -ll -p 8080 -e cat >/dev/null 2>&1 &")
        .ok();
    // The kernel knows that it listens: 8080 is 0x1F90, and 0A a listener.
    let listens = "until grep -q ':1F90 .* 0A ' /proc/net/tcp /proc/net/tcp6; do :; done";
    let _ = host.sh("web", listens).ok();

    let forwarding = host.say("forward -q web 0:8080").start();
    forwarding.wait_for("\n");
    let address = forwarding.so_far().trim().to_owned();
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    let data: Vec<u8> = (0..1_u32 << 16).flat_map(u32::to_le_bytes).collect();
    let mut streams: Vec<_> = (0..3).map(|_| connect(&address)).collect();
    for stream in &mut streams {
        let mut writing = stream.try_clone().unwrap();
        let data = data.clone();
        std::thread::spawn(move || {
            writing.write_all(&data).unwrap();
            writing.shutdown(Shutdown::Write).unwrap();
        });
    }
    for mut stream in streams {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer == data);
    }

    // Where nobody listens it is said, and the command goes on.
    let nobody = host.say("forward web 0:81").start();
    nobody.wait_for("\n");
    let line = nobody.so_far();
    let address = line.split_whitespace().next().unwrap();
    assert_eq!(line.trim(), format!("{address} leads to port 81 of web"));
    let error = connect(address).read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    nobody.wait_for_error("nothing listens on port 81 in sandbox \"web\"");

    let _ = host.say("stop web").ok();
    host.say("forward web 0:80")
        .run()
        .refused(&["\"web\"", "stopped"]);
    let _ = host.say("rm web").ok();
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    let patience = Some(Duration::from_secs(120));
    stream.set_read_timeout(patience).unwrap();
    stream.set_write_timeout(patience).unwrap();
    stream
}
