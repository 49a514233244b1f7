// A Minecraft server in offline mode: players join, and what one says all hear.
// node server.js [--port 0] [--motd TEXT] [--version V]; prints one JSON line with its address, then one per event.
'use strict'
const mc = require('minecraft-protocol')
const { parseArgs } = require('node:util')

const { values: chosen } = parseArgs({
  options: {
    host: { type: 'string', default: '127.0.0.1' },
    port: { type: 'string', default: '0' },
    motd: { type: 'string', default: 'a real server' },
    version: { type: 'string', default: '1.20.4' }
  }
})

const tell = (event) => process.stdout.write(JSON.stringify(event) + '\n')

const server = mc.createServer({
  'online-mode': false,
  encryption: false,
  host: chosen.host,
  port: Number(chosen.port),
  version: chosen.version,
  motd: chosen.motd,
  maxPlayers: 20
})
const data = require('minecraft-data')(chosen.version)

function say (client, text) {
  client.write('system_chat', { content: { type: 'compound', value: { text: { type: 'string', value: text } } }, isActionBar: false })
}

server.on('playerJoin', (client) => {
  client.write('login', { ...data.loginPacket, entityId: client.id })
  client.write('position', { x: 0, y: 64, z: 0, yaw: 0, pitch: 0, flags: 0x00, teleportId: 1 })
  tell({ event: 'joined', name: client.username, peer: client.socket.remoteAddress })
  client.on('chat_message', (packet) => {
    tell({ event: 'said', name: client.username, text: packet.message })
    for (const other of Object.values(server.clients)) say(other, `<${client.username}> ${packet.message}`)
  })
  client.on('end', () => tell({ event: 'left', name: client.username }))
  client.on('error', (error) => tell({ event: 'client error', text: String(error) }))
})
server.on('listening', () => tell({ event: 'listening', port: server.socketServer.address().port }))
server.on('error', (error) => { tell({ event: 'error', text: String(error) }); process.exitCode = 1 })

// The test holds our standard input: when it ends, however it ends, so do we.
process.stdin.on('end', () => process.exit()).resume()
