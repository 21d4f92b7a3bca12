//! Clients in a sandbox, and servers elsewhere.

use bouvet_e2e::drive::{run_at_most, sh};
use bouvet_e2e::internet::Internet;
use bouvet_host::{Program, Sandbox};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{FORBIDDEN, World};

/// Where the WebSocket is.
pub(crate) const ECHO: &str = "151.101.1.1";

/// What `command` prints last; it must succeed. Emulated processors start `npm` in their own time.
async fn last_line(sandbox: &Sandbox, command: &str) -> String {
    let ran = run_at_most(sandbox, 120, Program::Command, command).await;
    let said = ran.stdout.text();
    assert_eq!(ran.exit.exit_code, 0, "`{command}`: {said}{}", ran.stderr.text());
    said.lines().last().unwrap_or_default().to_owned()
}

pub(crate) async fn pip(world: &World) {
    let sandbox = world.sandbox().await;
    let pip = |host: &str| {
        format!(
            "pip install --disable-pip-version-check --no-cache-dir --retries 1 --target pip \
             --index-url https://{host}/simple/ hello-bouvet"
        )
    };
    let python = "PYTHONPATH=pip python3 -c 'import hello_bouvet; print(hello_bouvet.WORDS)'";
    let command = format!("{} && {python}", pip("pypi.example.com"));
    assert_eq!(last_line(sandbox, &command).await, "hello from a package");
    world.assert_refused(sandbox, &pip("evil.example"), "connection broken by").await;
}

pub(crate) async fn npm(world: &World) {
    let sandbox = world.sandbox().await;
    let npm = |host: &str| {
        format!(
            "mkdir -p npm && cd npm && NODE_EXTRA_CA_CERTS=../authority.pem npm install --no-audit --no-fund \
             --no-update-notifier --fetch-retries 0 --registry https://{host}/ hello-bouvet"
        )
    };
    let node = "node --print \"require('hello-bouvet')\"";
    let command = format!("{} && {node}", npm("npm.example.com"));
    assert_eq!(last_line(sandbox, &command).await, "hello from a package");
    let again = format!("rm -rf npm ~/.npm && {}", npm("evil.example"));
    world.assert_refused(sandbox, &again, "evil.example").await;
}

pub(crate) async fn git(world: &World) {
    let sandbox = world.sandbox().await;
    let git = |host: &str| format!("rm -rf hello && git clone --quiet http://{host}/cgi-bin/git/hello.git");
    let command = format!("{} && git -C hello fsck && cat hello/README", git("git.example.com"));
    assert_eq!(last_line(sandbox, &command).await, "hello from a repository");
    assert_eq!(sh(sandbox, "stat --format %s hello/noise").await, "300000");
    world.assert_refused(sandbox, &git("evil.example"), "Could not resolve host: evil.example").await;
    world.assert_refused(sandbox, &git(FORBIDDEN), "Failed to connect to 93.184.215.15").await;
}

/// Waits to be spoken to, then says something small and something large, and checks what comes back.
const WEBSOCKET: &str = "
const large = Buffer.alloc(300000, 'large')
const socket = new WebSocket('ws://' + process.argv[2] + '/echo')
socket.binaryType = 'arraybuffer'
socket.onerror = event => { console.error(`failed: ${event.message ?? event.type}`); process.exitCode = 1 }
socket.onclose = event => console.log(`closed ${event.code}`)
socket.onmessage = ({ data }) => {
    if (data === 'welcome') socket.send('small')
    else if (data === 'small') socket.send(large)
    else {
        console.log('as it was:', Buffer.from(data).equals(large))
        socket.close(1000)
    }
}";

pub(crate) async fn websocket(world: &World) {
    let sandbox = world.sandbox().await;
    listen(&world.internet);
    let node = |host: &str| format!("node --experimental-websocket websocket.js {host}");
    sandbox.write("websocket.js", WEBSOCKET.into(), false).await.unwrap();
    assert_eq!(sh(sandbox, &node("ws.example.com")).await, "as it was: true\nclosed 1000");
    for host in ["evil.example", FORBIDDEN] {
        world.assert_refused(sandbox, &node(host), "failed: ").await;
    }
}

/// Greets, then says everything back.
fn listen(internet: &Internet) {
    internet.there(async {
        let listener = TcpListener::bind((ECHO, 80)).await.unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(echo(stream));
            }
        });
    });
}

async fn echo(stream: TcpStream) -> Result<(), Error> {
    let mut socket = tokio_tungstenite::accept_async(stream).await?;
    socket.send(Message::text("welcome")).await?;
    while let Some(message) = socket.next().await.transpose()? {
        if message.is_text() || message.is_binary() {
            socket.send(message).await?;
        }
    }
    Ok(())
}
